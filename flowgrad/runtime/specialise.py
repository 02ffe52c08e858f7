"""Specialisation: concrete types for every value that the extents of the inputs decide, and integers folded.

Type rules are run again on twins of the nodes: nodes that belong to no graph, with static types. One twin serves all steps
of one form. A node whose extents only the run can tell is *open*: it ends what can be known, and its users wait for the
next segment.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from flowgrad.ir.evaluate import call_node
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.infer import describe, infer, symbolic_value
from flowgrad.ir.limits import Limits
from flowgrad.ir.ops.registry import Trait
from flowgrad.ir.types import Type
from flowgrad.runtime.flat_graph import ABSENT, FlatGraph, Record, constant_twin
from flowgrad.runtime.forms import Form, nbytes, operand_key

FOLDED_BYTES = 1 << 16
"""Results of at most this many bytes, of constants alone, are computed once per key."""


class Step(NamedTuple):
    """One node to run: its record and its form. ``open`` marks one whose extents the run has to tell."""

    record: Record
    form: Form
    open: bool

    @property
    def twin(self) -> Node:
        """The twin of the form: the names of its values may be those of another step."""
        return self.form.twin


class Knowledge:
    """What is known of the values so far: a twin for every value with a static type, None for the others."""

    def __init__(self, flat: FlatGraph, limits: Limits) -> None:
        self.flat = flat
        self.limits = limits
        self.twins: list[Value | None] = [None] * len(flat)
        for number, twin in flat.constant_twins.items():
            self.twins[number] = twin
        self.pending: Sequence[Record] = flat.records
        self._forms: dict[Hashable, Form] = {}

    def copy(self) -> Knowledge:
        """Return an independent copy, to go on with other extents."""
        other = Knowledge.__new__(Knowledge)
        other.flat, other.limits = self.flat, self.limits
        other.twins, other.pending, other._forms = list(self.twins), self.pending, self._forms
        return other

    def advance(self) -> list[Step]:
        """Return the steps that can run with what is known now; the rest stays pending."""
        steps: list[Step] = []
        waiting: list[Record] = []
        twins = self.twins
        for record in self.pending:
            for number in (*record.inputs, *record.captures) if record.captures else record.inputs:
                if number != ABSENT and twins[number] is None:
                    waiting.append(record)
                    break
            else:
                step = self._step(record)
                if step is not None:
                    steps.append(step)
        self.pending = waiting
        return steps

    def _step(self, record: Record) -> Step | None:
        if record.key is None:
            return self._new_step(record, None)
        twins = self.twins
        key = record.key, tuple([operand_key(twins[n]) for n in record.inputs])  # type: ignore[arg-type]
        form = self._forms.get(key)
        if form is None:
            return self._new_step(record, key)
        number, twin = record.outputs[0], form.twin
        twins[number] = Value(self.flat.names[number], twin.outputs[0].type, twin, 0)  # type: ignore[union-attr]
        return Step(record, form, False)

    def _new_step(self, record: Record, key: Hashable | None) -> Step | None:
        """Return a step of a form of its own, which later ones of the same ``key`` share if it is one of floats alone."""
        node = self.twin(record)
        types = infer(node)
        is_open = False
        outputs: list[Value | None] = []
        for index, number in enumerate(record.outputs):
            type_ = types[index] if index < len(types) else None
            if number == ABSENT or type_ is None or not type_.is_static:
                is_open = is_open or number != ABSENT
                outputs.append(None)
                continue
            check_tensor(type_, self.limits, node)
            outputs.append(Value(self.flat.names[number], type_, node, index))
        node.outputs = tuple(outputs)
        if not is_open and (folded := self._folded(record, node)) is not None:
            for number, array in zip(record.outputs, folded, strict=True):
                if number != ABSENT and array is not None:
                    self.twins[number] = constant_twin(self.flat.names[number], array)
            return None
        if is_open:
            # All outputs wait, so that a step belongs to one segment alone; names are for messages.
            declared = self.flat.types
            node.outputs = tuple(None if n == ABSENT else Value(self.flat.names[n], declared[n], node, i)
                                 for i, n in enumerate(record.outputs))
            return Step(record, Form(node, record.definition, True), True)
        for number, value in zip(record.outputs, outputs, strict=True):
            if number != ABSENT:
                self.twins[number] = value
        form = Form(node, record.definition, False)
        if key is not None and form.fills and node.output().type.dtype.is_float:
            self._forms[key] = form
        return Step(record, form, False)

    def twin(self, record: Record) -> Node:
        """Return a node like that of ``record``, on the twins of its inputs."""
        node = Node(record.node.key, record.node.op)
        node.name = record.node.name
        node.attributes = dict(record.attributes)
        node.subgraphs = dict(record.subgraphs)
        node.inputs = tuple(None if n == ABSENT else self.twins[n] for n in record.inputs)
        node.captures = tuple(v for n in record.captures if (v := self.twins[n]) is not None)
        node.outputs = (None,) * len(record.outputs)
        return node

    def _folded(self, record: Record, node: Node) -> list[Array | None] | None:
        """Return the outputs of ``node`` if they are integers known from extents, or small and constant."""
        traits = record.definition.traits
        if record.subgraphs or Trait.RANDOM in traits or any(v.type.dtype.element is not None for v in node.results):
            return None
        if len(node.outputs) == 1 and node.outputs[0] is not None:
            value = node.outputs[0]
            value.symbolic = symbolic_value(node, value.type)
            if value.symbolic is not None and all(isinstance(x, int) for x in value.symbolic.flat):
                return [_integers(value.symbolic, value.type)]
        if any(v.constant is None for v in node.operands):
            return None
        if sum(nbytes(v.type) for v in node.results) > FOLDED_BYTES:
            return None
        results = call_node(node, [None if v is None else v.constant for v in node.inputs], (), None)
        results += [None] * (len(node.outputs) - len(results))
        return [None if v is None else r for v, r in zip(node.outputs, results, strict=True)]


def _integers(symbolic: Array, type_: Type) -> Array:
    return np.array(symbolic.tolist(), dtype=np.int64).astype(type_.dtype.numpy).reshape(type_.static_shape)


def check_tensor(type_: Type, limits: Limits, node: Node) -> None:
    """Raise LimitError if a tensor of this type is larger than ``limits`` allow."""
    size = nbytes(type_)
    if size > limits.tensor_bytes:
        limits.check("tensor_bytes", size, describe(node))


def named_twin(step: Step, names: Sequence[str]) -> Node:
    """Return the twin of a step with the names of the step's own values, for messages."""
    record, twin = step.record, step.twin
    node = Node(record.node.key, record.node.op)
    node.name = record.node.name
    node.inputs = tuple([v and Value(names[n], v.type, v.producer, v.index)
                         for v, n in zip(twin.inputs, record.inputs, strict=True)])
    node.outputs = tuple([v and Value(names[n], v.type, node, v.index)
                          for v, n in zip(twin.outputs, record.outputs, strict=True)])
    return node
