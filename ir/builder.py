"""The builder: write operators as calls, get typed, named, traced nodes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Graph, Node, Value
from flowgrad.ir.infer import describe, draft, infer, known_types, symbolic_value
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.types import INT64, Dim, DimLike, DType, Type


class Builder:
    """Adds nodes to a graph: ``b.Add(x, y)``, ``b.Softmax(x, axis=1)``.

    Inputs may be values, None for an absent optional one, arrays, or Python numbers: a number next to a value takes
    the dtype of the first value among the inputs, a float that of the first float value; a list or tuple of integers
    becomes int64. New values are called after ``prefix`` and the op; new nodes carry ``origin``.
    """

    def __init__(self, graph: Graph, *, prefix: str = "", origin: int = 0) -> None:
        self.graph = graph
        self.prefix = prefix
        self.origin = origin

    def __getattr__(self, op: str) -> Callable[..., Value]:
        if op.startswith("_"):
            raise AttributeError(op)
        opdef(op)

        def call(self: Builder, *inputs: Any, **attributes: Any) -> Value:
            return self.add(op, inputs, attributes)

        setattr(Builder, op, call)  # from now on found without this detour; an op that is gone again is still refused
        return functools.partial(call, self)

    def add(
        self,
        op: str,
        inputs: Sequence[Any],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        captures: Sequence[Value] = (),
        subgraphs: Mapping[str, Graph] | None = None,
    ) -> Value:
        """Add a node with one output, called ``name`` if given, and return that output."""
        outputs = 1 if name is None else [name]
        return self.add_node(op, inputs, attributes, outputs=outputs, captures=captures, subgraphs=subgraphs).output()

    def add_several(
        self,
        op: str,
        inputs: Sequence[Any],
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: int | Sequence[str],
        captures: Sequence[Value] = (),
        subgraphs: Mapping[str, Graph] | None = None,
    ) -> tuple[Value, ...]:
        """Add a node and return its outputs; ``outputs`` is their number or their names."""
        node = self.add_node(op, inputs, attributes, outputs=outputs, captures=captures, subgraphs=subgraphs)
        return tuple(node.output(index) for index in range(len(node.outputs)))

    def add_node(
        self,
        op: str,
        inputs: Sequence[Any],
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: int | Sequence[str] = 1,
        captures: Sequence[Value] = (),
        subgraphs: Mapping[str, Graph] | None = None,
        types: Sequence[Type | None] | None = None,
        name: str = "",
    ) -> Node:
        """Add a node and return it.

        ``outputs`` is the number of its outputs, or their names ("" leaves one out); ``types`` overrides the inferred
        types where given; ``name`` is the name of the node itself.
        """
        values = self._values(inputs)
        names = [None] * outputs if isinstance(outputs, int) else list(outputs)
        kept: dict[str, Any] = {}
        inferred: Sequence[Type | None] = ()
        if attributes:
            kinds = opdef(op).kinds
            kept = {k: _attribute(v, kinds.get(k)) for k, v in attributes.items() if v is not None}
        if not kept and not subgraphs:
            inferred = known_types(op, values, len(names))
        if not inferred:
            inferred = infer(draft(op, values, kept, captures=captures, subgraphs=subgraphs, count=len(names)))
        specs: list[tuple[str, Type] | None] = []
        if outputs == 1 and inferred and inferred[0] is not None and types is None:  # like most
            specs.append((self._name(op, 0, specs), inferred[0]))
            names = []
        for index, given in enumerate(names):
            known = inferred[index] if index < len(inferred) else None
            type_ = (types[index] if types is not None else None) or known
            if given == "":
                specs.append(None)
                continue
            if type_ is None:
                raise ValidationError(f"{op} has no output {index} here", code="output",
                                      where=describe(draft(op, values, kept, count=len(names))))
            specs.append((self._name(op, index, specs) if given is None else given, type_))
        node = self.graph.add_node(
            op, values, specs, kept, captures=captures, subgraphs=subgraphs, origin=self.origin, name=name
        )
        first = node.outputs[0] if node.outputs else None
        if first is not None and not first.type.dtype.is_float:
            first.symbolic = symbolic_value(node, first.type)
        return node

    def passed(self, node: Node) -> Sequence[Value | None]:
        """Return what stands for the outputs of a node that was copied from another graph."""
        return node.outputs

    def _values(self, inputs: Sequence[Any]) -> Sequence[Value | None]:
        """Return inputs as values of this graph, without absent ones at the end."""
        for given in inputs:
            if given.__class__ is not Value:
                break
        else:
            return inputs
        dtypes = [v.type.dtype for v in inputs if isinstance(v, Value)]
        like = dtypes[0] if dtypes else None
        like_float = next((d for d in dtypes if d.is_float), like)
        values: list[Value | None] = [self.value(v, like_float if isinstance(v, float) else like) for v in inputs]
        while values and values[-1] is None:
            values.pop()
        return values

    @overload
    def value(self, what: None, like: DType | None = None) -> None: ...

    @overload
    def value(self, what: Value | np.ndarray[Any, Any] | np.generic | float | Sequence[int], like: DType | None = None
              ) -> Value: ...

    def value(self, what: Any, like: DType | None = None) -> Value | None:
        """Return ``what`` as a value of this graph: values pass, arrays and numbers become constants."""
        if what is None or isinstance(what, Value):
            return what
        if isinstance(what, (np.ndarray, np.generic)):
            return self.graph.add_constant(np.asarray(what))
        if isinstance(what, (list, tuple)):
            return self.ints(what)
        if isinstance(what, float) and (like is None or not like.is_float):
            raise ValidationError(f"no input tells the float dtype of {what!r}", code="input")
        if isinstance(what, (bool, int, float)):
            dtype = np.dtype(bool) if isinstance(what, bool) else (like or INT64).numpy
            return self.graph.add_constant(np.asarray(what, dtype))
        raise ValidationError(f"cannot use {what!r} as an input", code="input")

    def scalar(self, number: float | int | bool, dtype: DType) -> Value:
        """Return a rank-0 constant."""
        return self.graph.add_constant(np.asarray(number, dtype.numpy))

    def ints(self, numbers: Sequence[DimLike]) -> Value:
        """Return an int64 vector; every entry must be a plain integer."""
        if any(isinstance(n, Dim) for n in numbers):
            raise ValidationError(f"{list(numbers)!r} is known only at run time", code="shape")
        return self.graph.add_constant(np.asarray(numbers, np.int64).reshape(-1))

    def shape(self, x: Value) -> Value:
        """Return the shape of ``x`` as an int64 vector: a constant where it is static, else ``Shape(x)``."""
        if x.type.is_static:
            return self.ints(x.type.static_shape)
        return self.Shape(x)

    def extent(self, x: Value, axis: int) -> Value:
        """Return one extent of ``x`` as an int64 vector of length 1."""
        rank = x.type.rank
        if rank is not None:
            axis %= rank
            dim = x.shape[axis]
            if isinstance(dim, int):
                return self.ints([dim])
            return self.Shape(x, start=axis, end=axis + 1)
        return self.Slice(self.Shape(x), [axis], [axis + 1] if axis != -1 else [2**62])

    def filled(self, number: float | int | bool, like: Value, dtype: DType | None = None) -> Value:
        """Return a tensor of the shape of ``like`` (and its dtype) with every element ``number``."""
        scalar = self.scalar(number, dtype or like.type.dtype)
        if like.type.rank == 0:
            return scalar
        return self.Expand(scalar, self.shape(like))

    def zeros_like(self, x: Value) -> Value:
        """Return zeros of the type of ``x``; an optional value that is absent stays so."""
        if x.type.dtype.kind == "sequence":
            return self.SequenceZeros(x)
        if x.type.dtype.kind == "optional":
            return self.OptionalZeros(x)
        return self.filled(0, x)

    def cast(self, x: Value, dtype: DType) -> Value:
        """Return ``x`` in ``dtype``."""
        return x if x.type.dtype == dtype else self.Cast(x, to=dtype.onnx)

    def cast_like(self, x: Value, like: Value) -> Value:
        """Return ``x`` in the dtype of ``like``."""
        return self.cast(x, like.type.dtype)

    def residual(self, node: Node, name: str) -> Value:
        """Return the optional or residual output ``name`` of a forward node, adding it if it is not there yet."""
        definition = opdef(node.op)
        index = definition.outputs.index(name)
        if (present := node.optional_output(index)) is not None:
            return present
        type_ = _asked(node, index)
        return self.graph.set_output(node, index, self.graph.unique_name(f"{node.label}_{name.lower()}"), type_)

    def fresh(self, base: str) -> str:
        """Return ``base``, or ``base_1``, ... if it is taken."""
        return self.graph.unique_name(base)

    def _name(self, op: str, index: int, taken: Sequence[tuple[str, Type] | None]) -> str:
        base = f"{self.prefix}_{snake(op)}" if self.prefix else snake(op)
        name = self.fresh(base)
        if not taken:
            return name
        used = {spec[0] for spec in taken if spec is not None}
        while name in used:
            index += 1
            name = self.fresh(f"{base}_{index}")
        return name


def _asked(node: Node, index: int) -> Type:
    count = max(len(node.outputs), index + 1)
    sketch = draft(node.op, node.inputs, node.attributes, captures=node.captures, subgraphs=node.subgraphs, count=count)
    types = infer(sketch)
    found = types[index] if index < len(types) else None
    if found is None:
        raise ValidationError(f"{node.op} has no output {index} here", code="output", where=node.label)
    return found


def _attribute(value: Any, kind: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, np.generic):
        return value.item()
    value = int(value) if isinstance(value, bool) else value
    return float(value) if isinstance(value, int) and kind in ("float", "float | None") else value


@functools.cache
def snake(op: str) -> str:
    """Return ``reduce_sum`` for ``ReduceSum``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", op).lower()
