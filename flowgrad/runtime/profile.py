"""What runs did, node by node: a Chrome trace, with the keys that onnxruntime's profiles have.

``chrome://tracing``, Perfetto and what reads the profiles of onnxruntime open it. Times are in microseconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.files import write_text
from flowgrad.ir.graph import CONSTANT, Array, Value
from flowgrad.ir.types import Type
from flowgrad.runtime.specialise import Step

PROVIDER = "NumPy"

Mark = tuple[int, Step | None, Sequence[Any]]
"""When (in ns) a step had ended, and what it made if its types are known to the run alone; no step: where a clock starts."""

Event = dict[str, Any]


@dataclass(frozen=True)
class Profile:
    """The outputs of the last of some runs, and what all of them did: made by ``compile(...).profile(feeds, runs=...)``.

    ``events`` are those of a Chrome trace: of category "Session" what belongs to a run as a whole, of category "Node" one
    for each node of each run: ``name``, ``ts`` and ``dur`` in microseconds, and under ``args`` ``op_name``, ``provider``,
    ``output_size``, ``activation_size``, ``parameter_size`` (bytes), ``input_type_shape`` and ``output_type_shape``.
    What takes no call (views of buffers) has no event; bodies of If, Loop and Scan count as the node.
    """

    outputs: dict[str, Array]
    events: list[Event]

    def __post_init__(self) -> None:
        """Let time begin with the first event."""
        first = min((event["ts"] for event in self.events), default=0)
        for event in self.events:
            event["ts"] -= first

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as JSON, an event a line. Raises SaveError."""
        import json

        write_text(Path(path), "[\n" + ",\n".join(map(json.dumps, self.events)) + "\n]\n")

    def by_op(self) -> dict[str, tuple[int, float]]:
        """Return for each operator how many of its nodes ran, and their seconds, those that took most first."""
        found: dict[str, tuple[int, float]] = {}
        for event in self.events:
            if event["cat"] == "Node":
                count, seconds = found.get(event["args"]["op_name"], (0, 0.0))
                found[event["args"]["op_name"]] = count + 1, seconds + event["dur"] / 1e6
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def session_event(name: str, start: int, end: int) -> Event:
    """Return the event of what took from ``start`` to ``end`` (ns) as a whole."""
    return {"cat": "Session", "pid": os.getpid(), "tid": 0, "ts": start / 1e3, "dur": (end - start) / 1e3, "ph": "X",
            "name": name, "args": {}}


def node_events(marks: Iterable[Mark]) -> Iterator[Event]:
    """Yield the events of the nodes of one run."""
    before = 0
    for index, (at, step, made) in enumerate(marks):
        if step is not None:
            yield _node_event(index, step, before, at, made)
        before = at


def _node_event(index: int, step: Step, start: int, end: int, made: Sequence[Any]) -> Event:
    node = step.record.node
    operands = [(v, twin) for v, twin in zip(node.inputs, step.twin.inputs, strict=True) if v is not None and twin is not None]
    inputs, outputs = [twin.type for _, twin in operands], _types(step, made)
    constant = sum(_bytes(twin.type) for v, twin in operands if v.producer.op == CONSTANT)
    return {
        "cat": "Node", "pid": os.getpid(), "tid": 0, "ts": start / 1e3, "dur": (end - start) / 1e3, "ph": "X",
        "name": f"{node.name or node.label}_kernel_time",
        "args": {"op_name": node.op, "provider": PROVIDER, "node_index": str(index), "parameter_size": str(constant),
                 "activation_size": str(sum(map(_bytes, inputs)) - constant),
                 "output_size": str(sum(map(_bytes, outputs))), "input_type_shape": _shown(inputs),
                 "output_type_shape": _shown(outputs)},
    }


def _types(step: Step, made: Sequence[Any]) -> list[Type]:
    """Return the types of what a step made: those of its twin, or what the run has shown."""
    declared = [v for v in step.twin.outputs if v is not None]
    if not made:
        return [v.type for v in declared]
    return [_seen(v, array) for v, array in zip(declared, made, strict=True)]


def _seen(value: Value, array: Any) -> Type:
    return Type(value.type.dtype, array.shape) if isinstance(array, np.ndarray) else value.type


def _bytes(type_: Type) -> int:
    size = type_.size
    return size * type_.dtype.itemsize if isinstance(size, int) and type_.dtype.element is None else 0


def _shown(types: Iterable[Type]) -> list[dict[str, list[int]]]:
    """Return types as onnxruntime's profiles have them: ``{"float": [2, 4]}``."""
    return [{t.dtype.onnx_type.removeprefix("tensor(").rstrip(")"): list(t.static_shape) if t.is_static else []} for t in types]
