"""The model: a graph with its weights and roles, which every transform takes and returns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

import numpy as np

from flowgrad.ir.boundary import guarded
from flowgrad.ir.bulk import bulk
from flowgrad.ir.errors import InputError, LoadError, ResourceError, SaveError, ValidationError, safe_text, suggestion
from flowgrad.ir.files import open_file, read_file
from flowgrad.ir.fixed_shapes import Shapes, fix_shapes
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.inline import rebuilt
from flowgrad.ir.kept import kept
from flowgrad.ir.limits import Limits, in_time, limits_or_default
from flowgrad.ir.ops.registry import Borrowed
from flowgrad.ir.roles import Role, casadi_named, take_roles, with_roles
from flowgrad.ir.sparse import PARTS, Sparsity, sparsity_of
from flowgrad.ir.types import Dim, DType
from flowgrad.ir.verify import verify
from flowgrad.passes.edits import has_shared_weights
from flowgrad.passes.manager import DEFAULT_PIPELINE, PLAIN_PIPELINE, RUNNING_PIPELINE, PassManager
from flowgrad.runtime.engines import compile_graph
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.runtime.program import Program

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class ValueInfo:
    """What a user sees of an input, output or parameter: name, dtype name, shape (integers and dim expressions).

    ``reason`` says, for a parameter candidate, why it counts as a parameter or why not (see ``included``).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None
    reason: str = ""
    included: bool = True
    _data: Array | None = field(default=None, repr=False, compare=False)

    @property
    def value(self) -> Array:
        """The array of a parameter that is stored: read-only, as the model holds it. Raises InputError for what is computed."""
        if self._data is None:
            raise InputError(f"{self.name!r} is not stored in the model: it is an input, or computed", code="name")
        return self._data


class Params(list[ValueInfo]):
    """Parameter candidates in order; ``params["w"]`` is the one of that name, ``params["w"].value`` its array."""

    @overload
    def __getitem__(self, key: SupportsIndex | str, /) -> ValueInfo: ...

    @overload
    def __getitem__(self, key: slice, /) -> list[ValueInfo]: ...

    def __getitem__(self, key: SupportsIndex | str | slice, /) -> ValueInfo | list[ValueInfo]:
        """Return by place or by name. Raises InputError for an unknown name."""
        if not isinstance(key, str):
            return super().__getitem__(key)
        found = next((info for info in self if info.name == key), None)
        if found is None:
            names = [info.name for info in self]
            raise InputError(f"no parameter {key!r}{suggestion(key, names)}; there are: {', '.join(names[:12]) or 'none'}", code="name")
        return found


def info_of(value: Value, name: str = "", reason: str = "", included: bool = True) -> ValueInfo:
    """Return the ValueInfo of a value, under its own or another name."""
    shape = value.type.shape
    shown = None if shape is None else tuple(repr(d) if isinstance(d, Dim) else d for d in shape)
    return ValueInfo(name or value.name, value.type.dtype.name, shown, reason, included, value.producer.data)


class Model:
    """A graph with its weights. Callable; every transform takes a Model and returns a new one.

    ``roles`` maps (role, of, wrt) to the actual name of what a transform made, for example
    ``("grad", "loss", "w")`` to ``"w_grad"``. ``notes`` holds remarks of transforms. With ``stabilize`` False, formulas
    that overflow are run as they are written, and differentiated so.

    Examples:
        >>> model(batch)["logits"].shape
        (2, 3)
        >>> fg.grad(model, of="loss", wrt="w1").roles
        {('grad', 'loss', 'w1'): 'w1_grad'}
    """

    def __init__(self, graph: Graph, roles: Mapping[Role, str] | None = None, notes: Sequence[str] = ()) -> None:
        self._graph, self._borrowed = graph, Borrowed(graph)
        self.roles: dict[Role, str] = dict(roles or {})
        self.notes: tuple[str, ...] = tuple(notes)
        self.stabilize = True
        self._optimized_at = -1
        """The version of the graph that the standard pipeline made, so that it does not run on its own result."""

    @property
    def graph(self) -> Graph:
        """The graph. Raises UnsupportedError if an operator in it was declared in a scope that has ended.

        Examples:
            >>> [node.op for node in model.graph.nodes()]
            ['Gemm', 'Tanh', 'Gemm', 'SoftmaxCrossEntropyLoss']
        """
        self._borrowed.check()
        return self._graph

    def with_graph(self, graph: Graph) -> Model:
        """Return a model of ``graph`` with the roles and notes of this one.

        Examples:
            >>> model.with_graph(model.graph.copy())
            <Model mlp: (x, target) -> (loss, logits), 4 nodes>
        """
        other = Model(graph, self.roles, self.notes)
        other.stabilize = self.stabilize
        return other

    # ---- looking ----------------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[ValueInfo]:
        """Name, dtype and shape of every input.

        Examples:
            >>> [(value.name, value.dtype, value.shape) for value in model.inputs]
            [('x', 'float32', ('N', 4)), ('target', 'int64', ('N',))]
        """
        return [info_of(v) for v in self._graph.inputs]

    @property
    def outputs(self) -> list[ValueInfo]:
        """Name, dtype and shape of every output.

        Examples:
            >>> [value.name for value in model.outputs]
            ['loss', 'logits']
        """
        return [info_of(n.input(0), n.name) for n in self._graph.output_entries]

    @kept
    def params(self) -> Params:
        """Every parameter candidate with the reason why ``wrt="params"`` includes it or not; ``params["w"].value`` is an array.

        Examples:
            >>> [value.name for value in model.params if value.included]
            ['w1', 'b1', 'w2', 'b2']
            >>> model.params["w1"].value.shape
            (4, 8)
        """
        from flowgrad.passes.parameters import candidates

        return Params(info_of(c.value, reason=c.reason, included=c.included) for c in candidates(self.graph))

    @property
    def sparsity(self) -> dict[str, Sparsity]:
        """The patterns of sparse derivatives among the outputs, by name: rows, cols, shape, and ``matrix(values)``.

        Examples:
            >>> squares = fg.load(b"graph @g (%x: f64[9]) -> (%y: f64[9]) { %y: f64[9] = Mul(%x, %x) }")
            >>> fg.jacobian(squares, sparse=True).sparsity["y_x_jacobian"].shape
            (9, 9)
        """
        return sparsity_of(self.graph, self.roles)

    @guarded("while printing")
    def __str__(self) -> str:
        from flowgrad.ir.text import format_graph

        return format_graph(self._graph)

    def __repr__(self) -> str:
        ins = ", ".join(i.name for i in self.inputs)
        outs = ", ".join(o.name for o in self.outputs)
        return f"<Model {self._graph.name}: ({ins}) -> ({outs}), {len(self._graph)} nodes>"

    @guarded("while printing")
    def _repr_html_(self) -> str:
        """What notebooks show: inputs, outputs and operators. Names from files are escaped."""
        from flowgrad.ir.html import html_of

        return html_of(self._graph, self.notes)

    # ---- running ----------------------------------------------------------------------------------------------------

    def __call__(self, *feeds: Any, **named: Any) -> dict[str, Array]:
        """Run the model on its cached default program; returns the outputs by name.

        Inputs are given as one dict, as keywords, or as arrays in the order of the inputs. Raises InputError for a wrong
        name, number, dtype or shape.
        """
        try:
            self._borrowed.check()
            given = {**self._by_name(feeds), **named}
            return self._program.run(given)
        except MemoryError as error:
            raise ResourceError(f"out of memory: {error}", code="memory") from error

    def _by_name(self, feeds: Sequence[Any]) -> Mapping[str, Any]:
        """Return positional feeds by the names of the inputs: one dict, or arrays in order."""
        if not feeds or (len(feeds) == 1 and feeds[0] is None):
            return {}
        if len(feeds) == 1 and isinstance(feeds[0], Mapping):
            return feeds[0]
        names = [v.name for v in self.graph.inputs]
        if len(feeds) > len(names) or any(isinstance(f, Mapping) for f in feeds):
            raise InputError(f"{self.graph.name!r} takes one dict, or arrays for its inputs ({', '.join(names) or 'none'}) in "
                             f"this order; got {len(feeds)} positional arguments", code="feeds")
        return dict(zip(names, feeds, strict=False))

    @kept
    def _program(self) -> Program:
        return self.compile()

    @overload
    def compile(self, engine: Literal["numpy"] = "numpy", threads: int | None = None, limits: Limits | None = None
                ) -> NumpyProgram: ...

    @overload
    def compile(self, engine: str, threads: int | None = None, limits: Limits | None = None) -> Program: ...

    @guarded("while compiling")
    def compile(self, engine: str = "numpy", threads: int | None = None, limits: Limits | None = None) -> Program:
        """Return a Program: the model optimised and ready to run. Raises EngineError if ``engine`` cannot start.

        Examples:
            >>> program = model.compile(threads=1)
            >>> program.run(batch)["logits"].shape
            (2, 3)
        """
        return in_time(limits or self.graph.limits, self._compiled, engine, threads, limits)

    def _compiled(self, engine: str, threads: int | None, limits: Limits | None) -> Program:
        optimized = self.optimized()
        graph = optimized.graph
        if has_shared_weights(graph):
            graph = PassManager(RUNNING_PIPELINE).run(graph, in_place=optimized is not self).model
        return compile_graph(graph, engine, threads, limits)

    # ---- making others ------------------------------------------------------------------------------------------------

    @guarded("while passes ran")
    def optimized(self, passes: str | None = None) -> Model:
        """Return this model after a pipeline of passes (default: the standard one).

        Examples:
            >>> gradient = fg.grad(model, of="loss", wrt="params")
            >>> len(gradient.optimized().graph) < len(gradient.graph)
            True
        """
        if passes is None and self._optimized_at == self.graph.version:
            return self
        standard = DEFAULT_PIPELINE if self.stabilize else PLAIN_PIPELINE
        model: Model = PassManager(standard if passes is None else passes).run(self).model
        model._optimized_at = model.graph.version if passes is None else -1
        return model

    def state_dict(self) -> dict[str, Array]:
        """Return the arrays of all parameters that are stored, by name: read-only, as the model holds them.

        Examples:
            >>> {name: array.shape for name, array in model.state_dict().items()}
            {'w1': (4, 8), 'b1': (8,), 'w2': (8, 3), 'b2': (3,)}
        """
        from flowgrad.passes.parameters import candidates

        found = [c.value for c in candidates(self.graph) if c.included]
        return {v.name: v.producer.data for v in found if v.producer.data is not None}

    def with_params(self, values: Mapping[str, Any]) -> Model:
        """Return this model with other values for the named constants.

        The dtype must be that of the present value. Another shape is taken where the operators of the model allow it, and
        types follow; InputError, with the node, where they do not.

        Examples:
            >>> zeroed = model.with_params({"b2": np.zeros(3, np.float32)})
            >>> zeroed.state_dict()["b2"]
            array([0., 0., 0.], dtype=float32)
        """
        if not isinstance(values, Mapping):
            raise InputError(f"with_params takes arrays by name, as in {{'w': array}}, not {type(values).__name__}", code="type")
        graph = self.graph.copy()
        constants = {v.name: v for v in graph.constants if v.name}
        resized: dict[Value, Array] = {}
        for name, given in values.items():
            if name not in constants:
                raise InputError(f"no constant {name!r}{suggestion(name, constants)}", code="name")
            value, array = constants[name], np.array(given)  # the caller's may change
            if array.dtype != value.type.dtype.numpy:
                raise InputError(f"{name!r} is {value.type!r}, got {array.dtype.name}{list(array.shape)}", code="dtype")
            self._check_pattern(value, array)
            if array.shape == value.type.static_shape:
                graph.set_data(value, array)
            else:
                resized[value] = array
        if not resized:
            return self.with_graph(graph)
        shown = ", ".join(f"{v.name!r} of shape {list(a.shape)} for {v.type!r}" for v, a in resized.items())
        try:
            return self.with_graph(rebuilt(graph, resized))
        except ValidationError as error:
            raise InputError(f"the model does not take {shown}: {error.message}", code="shape", where=error.where) from error

    def _check_pattern(self, value: Value, array: Array) -> None:
        """Raise InputError for a new constant that the pattern of a sparse derivative of this model may not hold for."""
        old = value.producer.data
        if old is None or not any(role in PARTS for role, _, _ in self.roles):
            return
        holds = array.shape == old.shape and bool(((array == 0) | (old != 0)).all())
        if not holds or (not value.type.dtype.is_float and not np.array_equal(array, old)):
            raise InputError(f"the pattern of the sparse derivative counts on what {value.name!r} is (its zeros, if it holds floats): "
                             "set the values of the model first, then make its sparse derivative", code="sparsity")

    def astype(self, dtype: str | DType) -> Model:
        """Return this model computing in another float type: weights, casts and constants alike.

        In float16 and bfloat16, derivatives and counts are computed in float32 and rounded. InputError where a constant is
        too large for the type.

        Examples:
            >>> model.astype("float64").inputs[0].dtype
            'float64'
        """
        from flowgrad.passes.precision import converted

        return self.with_graph(converted(self.graph, dtype))

    # ---- files ------------------------------------------------------------------------------------------------------

    @guarded("while saving")
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the msgpack form; the old file, if any, stays whole until the new one is. Raises SaveError.

        A path that ends in ``.onnx`` is refused: that form is written by ``to_onnx``.

        Examples:
            >>> model.save("/tmp/mlp.msgpack")
            >>> fg.load("/tmp/mlp.msgpack")
            <Model mlp: (x, target) -> (loss, logits), 4 nodes>
        """
        if Path(path).suffix.lower() == ".onnx":
            raise SaveError(f"save writes the msgpack form, not {os.fspath(path)!r}: use to_onnx for that", code="form")
        from flowgrad.ir.pack import save

        save(with_roles(self.graph, self.roles), Path(path))

    @guarded("while exporting")
    def to_onnx(
        self, path: str | os.PathLike[str] | None = None, opset: int | None = None, passes: str | None = None, *,
        naming: Literal["flowgrad", "casadi"] = "flowgrad",
    ) -> ModelProto:
        """Return the model as plain ONNX (default-domain operators only), and write it to ``path`` if given.

        ``passes`` run first (default: the standard pipeline; "" for none). The opset stamp is the lowest that is right, 18
        at least; ``opset`` raises it. With ``naming="casadi"``, seeds and derivatives are called as CasADi does: ``adj_y`` in and
        ``adj_x`` out for cotangents, ``fwd_x`` and ``fwd_y`` for tangents, ``jac_y_x``, ``hess_f_x_x``. Raises SaveError, and
        InputError for another naming.

        Examples:
            >>> written = fg.grad(model, of="loss", wrt="x").to_onnx("/tmp/mlp_grad.onnx")
            >>> [output.name for output in written.graph.output]
            ['x_grad']
        """
        if naming not in ("flowgrad", "casadi"):
            raise InputError(f"naming is 'flowgrad' or 'casadi', got {naming!r}", code="option")
        return in_time(self.graph.limits, self._exported, path, opset, passes, naming)

    def _exported(self, path: str | os.PathLike[str] | None, opset: int | None, passes: str | None, naming: str) -> ModelProto:
        from flowgrad.exchange.writer import save_onnx, write_onnx

        optimized = self if passes == "" else self.optimized(passes)
        named = casadi_named(optimized.graph, self.roles) if naming == "casadi" else (optimized.graph, self.roles)
        graph = with_roles(*named)
        if path is None:
            return write_onnx(graph, opset)
        return save_onnx(graph, Path(path), opset)


@guarded("while loading")
@bulk
def load(source: Any, *, limits: Limits | None = None, strict: bool = False, shapes: Shapes | None = None) -> Model:
    """Load a model from a ``.onnx`` or ``.msgpack`` file (told apart by content), bytes, or an onnx.ModelProto.

    An ONNX file may declare shapes that are not those of the run; as in onnxruntime they do not count, and the model's
    ``notes`` name them. With ``strict`` they are refused. ``shapes`` fixes the shapes of inputs, ``{"x": (1, 3, None, 224)}``
    with None for an extent that stays as it is, and the extents of named dims, ``{"batch": 1}``; types follow through the
    graph. Raises LoadError for a damaged file, ValidationError for one that breaks the standard, UnsupportedError for what
    the product cannot represent, LimitError for what passes ``limits``, InputError for ``shapes`` that are not those of the
    file.

    Examples:
        >>> fg.load("tests/data/mlp.onnx").inputs[0].shape
        ('N', 4)
        >>> fg.load("tests/data/mlp.onnx", shapes={"N": 2}).inputs[0].shape
        (2, 4)
        >>> fg.load(b"graph @g (%x: f32[3]) -> (%y: f32[3]) { %y: f32[3] = Sin(%x) }")
        <Model g: (x) -> (y), 1 nodes>
    """
    notes: list[str] = []
    graph = in_time(limits_or_default(limits), _Loader(limits, strict, notes, _checked(shapes)).graph, source)
    return Model(graph, take_roles(graph), notes)


@dataclass(frozen=True)
class _Loader:
    """Reads any form; ``notes`` takes what is to be said about the file."""

    limits: Limits | None
    strict: bool
    notes: list[str]
    shapes: Shapes

    def graph(self, source: Any) -> Graph:
        if isinstance(source, (str, os.PathLike)):
            return self._file(Path(source))
        if isinstance(source, (bytes, bytearray, memoryview)):
            return self._bytes(bytes(source))
        return self._onnx(source)

    def _file(self, path: Path) -> Graph:
        from flowgrad.ir import pack

        try:
            with open_file(path) as file:
                head = file.read(64)
        except OSError as error:
            shown = safe_text(os.fspath(path), 100)
            hint = "; text of a graph is loaded as bytes, text.encode()" if "graph @" in shown else ""
            raise LoadError(f"cannot read {shown!r}: {error.strerror}{hint}", code="file") from error
        if pack.is_packed(head):
            return self._fixed(pack.load(path, self.limits))
        if _is_text(head):
            return self._text(bytes(read_file(path, limits_or_default(self.limits))))
        return self._onnx(path)

    def _bytes(self, data: bytes) -> Graph:
        from flowgrad.ir import pack

        if pack.is_packed(data[:64]):
            return self._fixed(pack.unpack(data, self.limits))
        return self._text(data) if _is_text(data[:64]) else self._onnx(data)

    def _onnx(self, source: Any) -> Graph:
        from flowgrad.exchange.reader import read_onnx

        return read_onnx(source, self.limits, strict=self.strict, notes=self.notes, shapes=self.shapes)

    def _text(self, data: bytes) -> Graph:
        from flowgrad.ir.text import parse_graph

        limits_or_default(self.limits).check("file_bytes", len(data))
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise LoadError(f"not a text, msgpack or ONNX file: {error}", code="file") from error
        graph = parse_graph(text, limits=self.limits)
        verify(graph)
        return self._fixed(graph)

    def _fixed(self, graph: Graph) -> Graph:
        if self.shapes:
            fix_shapes(graph, self.shapes)
        return graph


def _checked(shapes: Any) -> Shapes:
    if shapes is None or (isinstance(shapes, Mapping) and all(isinstance(name, str) for name in shapes)):
        return shapes or {}
    raise InputError(f"shapes maps names of inputs to shapes, and names of dims to extents; got {shapes!r}", code="shape")


def _is_text(head: bytes) -> bool:
    return head.lstrip().startswith((b"graph", b"#"))
