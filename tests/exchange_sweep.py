"""Every model that onnx ships for its backends, in and out again: ``python -m tests.exchange_sweep``.

Each case is imported, evaluated against the stored outputs, exported (the checker runs), imported again and evaluated
again. Prints one line per failure and counts per suite; exits 1 if anything but an honest refusal happened.
"""

from __future__ import annotations

import argparse
import collections
import functools
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from onnx import ModelProto, numpy_helper

from flowgrad.exchange.external import ExternalFolder
from flowgrad.exchange.reader import read_onnx
from flowgrad.exchange.tensors import array_of
from flowgrad.exchange.writer import write_onnx
from flowgrad.ir.dtypes import Option, given_back
from flowgrad.ir.errors import FlowgradError, UnsupportedError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.limits import Limits
from flowgrad.ir.ops.registry import Trait, opdef

Sets = Sequence[tuple[Sequence[Any], Sequence[Any]]]
Case = tuple[str, str, ModelProto, Sets]
DATA = Path(onnx.backend.test.__file__).parent / "data"


@functools.cache
def node_cases() -> list[Case]:
    """Return the generated single-operator cases: suite, name, model, data sets."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    return [("node", c.name, c.model, c.data_sets or []) for c in found if c.model is not None]


def file_cases() -> Iterator[Case]:
    """Yield the cases that lie in the installed package as files."""
    for suite in ("simple", "pytorch-converted", "pytorch-operator"):
        for folder in sorted((DATA / suite).iterdir()):
            model = onnx.load(folder / "model.onnx")
            sets = [(_arrays(d, "input"), _arrays(d, "output")) for d in sorted(folder.glob("test_data_set_*"))]
            yield suite, folder.name, model, sets


def _arrays(folder: Path, kind: str) -> list[Any]:
    count = len(list(folder.glob(f"{kind}_*.pb")))
    protos = [onnx.TensorProto.FromString((folder / f"{kind}_{i}.pb").read_bytes()) for i in range(count)]
    return [numpy_helper.to_array(p) for p in protos]


def is_random(graph: Graph) -> bool:
    """True if a result cannot be compared (a Dropout without its training input is none)."""
    return any(Trait.RANDOM in opdef(n.op).traits and (n.op != "Dropout" or len(n.inputs) > 2) for _, n in graph.walk())


def mismatch(graph: Graph, sets: Sets) -> str:
    """Return what is wrong with the outputs of ``graph`` on stored data, or an empty string."""
    names = [v.name for v in graph.inputs]
    for inputs, outputs in sets:
        feeds = dict(zip(names, (_like(a, v) for a, v in zip(inputs, graph.inputs, strict=False)), strict=False))
        got = evaluate(graph, feeds)
        for (name, mine), theirs in zip(got.items(), outputs, strict=False):
            if not (same_container(mine, theirs) if holds_container(mine) else close(mine, _plain(theirs))):
                return f"output {name!r} differs"
    return ""


def holds_container(array: Array) -> bool:
    """Return whether the evaluator gave a sequence or an optional value."""
    return array.dtype == object and not array.ndim and isinstance(array.item(), (tuple, Option))


def same_container(mine: Array, theirs: Any) -> bool:
    """Return whether a sequence or an optional value holds the stored arrays."""
    held = given_back(mine)
    if held is None or theirs is None:
        return held is theirs is None
    if not isinstance(held, list):
        return close(held, _plain(theirs))
    return len(held) == len(theirs) and all(close(a, _plain(t)) for a, t in zip(held, theirs, strict=True))


def _plain(data: Any) -> Array:
    return array_of(data, ExternalFolder(None), Limits()) if isinstance(data, onnx.TensorProto) else np.asarray(data)


def _like(data: Any, value: Any) -> Any:
    if value.type.dtype.element is not None:
        return data
    array = _plain(data)
    return array.astype(object) if value.type.dtype.kind == "string" else array


def close(mine: Array, theirs: Array) -> bool:
    """Return whether two outputs agree to the rounding of their dtype."""
    if mine.shape != theirs.shape:
        return False
    if mine.dtype == object or theirs.dtype.kind in "OSU":
        return [str(x) for x in mine.flat] == [x.decode() if isinstance(x, bytes) else str(x) for x in theirs.flat]
    if mine.dtype.kind in "biu":
        return bool(np.array_equal(mine, theirs))
    rtol = 1e-3 if mine.dtype.itemsize >= 4 else 3e-2
    wide = np.complex128 if mine.dtype.kind == "c" else np.float64
    return bool(np.allclose(mine.astype(wide), theirs.astype(wide), rtol=rtol, atol=rtol / 100, equal_nan=True))


def run_case(model: ModelProto, sets: Sets) -> tuple[str, str]:
    """Return (stage reached, remark): "refused", "import", "values", "export", "again" or "ok"."""
    try:
        graph = read_onnx(model)
    except UnsupportedError as error:
        return "refused", str(error)
    except FlowgradError as error:
        return "import", f"{type(error).__name__}: {error}"
    if not is_random(graph) and (wrong := _attempt(lambda: mismatch(graph, sets))):
        return "values", wrong
    again: list[Graph] = []
    if wrong := _attempt(lambda: again.append(read_onnx(write_onnx(graph))) or ""):  # type: ignore[func-returns-value]
        return "export", wrong
    if [v.type for v in again[0].inputs] != [v.type for v in graph.inputs] and not _has_fresh(graph):
        return "again", "input types changed"
    if not is_random(graph) and (wrong := _attempt(lambda: mismatch(again[0], sets))):
        return "again", wrong
    return "ok", ""


def _has_fresh(graph: Graph) -> bool:
    return any(v.type.shape is None or not v.type.is_static for v in graph.inputs)


def _attempt(action: Any) -> str:
    try:
        return str(action())
    except FlowgradError as error:
        return f"{type(error).__name__}: {error}"


def main() -> int:
    """Run the sweep; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="")
    parser.add_argument("--match", default="")
    parser.add_argument("--refused", action="store_true", help="list the refusals too")
    given = parser.parse_args()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for suite, name, model, sets in [*node_cases(), *file_cases()]:
        if given.suite not in ("", suite) or given.match not in name:
            continue
        stage, remark = run_case(model, sets)
        counts[suite, stage] += 1
        if stage not in ("ok", "refused") or (stage == "refused" and given.refused):
            print(f"{stage:8} {suite}/{name}: {' '.join(remark.split())[:1000]}")
    for (suite, stage), count in sorted(counts.items()):
        print(f"{suite:18} {stage:8} {count}", file=sys.stderr)
    return int(any(stage not in ("ok", "refused") for _, stage in counts))


if __name__ == "__main__":
    sys.exit(main())
