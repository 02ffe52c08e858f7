"""Models as functions of one flat float64 vector, with exact derivatives: what SciPy's solvers call."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.arguments import check_flag
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, suggestion
from flowgrad.ir.graph import CONSTANT, Array, Value
from flowgrad.ir.ops.operands import sum_of
from flowgrad.model import Model
from flowgrad.passes.selection import Names, Of, Pick, find_of, find_scalar, find_wrt
from flowgrad.transforms.derivatives import hvp, value_and_grad
from flowgrad.transforms.hessians import hessian
from flowgrad.transforms.jacobians import jacobian

Bounds = Mapping[str, tuple[Any, Any]]
"""The least and the largest value of a variable; None for none, arrays for each element."""

WEIGHED = "weighed_outputs"
"""The scalar whose Hessian a vector function with weights has."""

Key = tuple[tuple[str, tuple[int, ...], bytes], ...]
"""What a run was given: names, shapes and contents of its arrays."""


class _Variables:
    """The variables of a function: named arrays, and the one vector that holds them one after the other."""

    def __init__(self, model: Model, wrt: Names, start: Mapping[str, Any], bounds: Bounds) -> None:
        values = find_wrt(model.graph.copy(), wrt)
        self.names = [v.name for v in values]
        for given in (start, bounds):
            for name in given:
                if name not in self.names:
                    raise InputError(f"{name!r} is no variable{suggestion(name, self.names)}; these are: {', '.join(self.names)}",
                                     code="name")
        self.dtypes = {v.name: v.type.dtype.numpy for v in values}
        self.start = {v.name: _start_of(v, start.get(v.name)) for v in values}
        self.shapes = {name: a.shape for name, a in self.start.items()}
        self.size = sum(math.prod(s) for s in self.shapes.values())
        self.bounds = dict(bounds)

    def pack(self, arrays: Mapping[str, Any]) -> Array:
        """Return the arrays of all variables as one vector."""
        parts = [np.broadcast_to(np.asarray(arrays[n], np.float64), self.shapes[n]).reshape(-1) for n in self.names]
        return np.concatenate(parts) if parts else np.zeros(0)

    def unpack(self, x: Any) -> dict[str, Array]:
        """Return the variables of a vector by name, in their own shapes and dtypes; InputError for another size."""
        vector = np.asarray(x)
        if vector.dtype.kind not in "fiub" or vector.size != self.size:
            raise InputError(f"x is a vector of {self.size} real numbers ({', '.join(self.names)}), got "
                             f"{vector.dtype.name}{list(vector.shape)}", code="shape")
        flat, found, at = vector.reshape(-1), {}, 0
        for name, shape in self.shapes.items():
            end = at + math.prod(shape)
            found[name] = np.asarray(flat[at:end].reshape(shape), self.dtypes[name], order="C")
            at = end
        return found


def _start_of(value: Value, given: Any) -> Array:
    """Return where a variable starts: what is given, the value that a weight has, or zeros."""
    shape = value.type.shape
    if given is not None:
        array = np.asarray(given, np.float64)
        if shape is not None and (len(shape) != array.ndim or any(isinstance(d, int) and d != n for d, n in
                                                                  zip(shape, array.shape, strict=True))):
            raise InputError(f"start[{value.name!r}] has shape {list(array.shape)}, and the variable is {value.type!r}", code="shape")
        return array
    if value.producer.op == CONSTANT and value.producer.data is not None:
        return value.producer.data.astype(np.float64)
    if not value.type.is_static:
        raise InputError(f"{value.name!r} is {value.type!r}: say its shape by start={{{value.name!r}: ...}}", code="shape")
    return np.zeros(value.type.static_shape)


class _Function(ABC):
    """What scalar and vector functions share: variables, fixed inputs, programs made when first asked for."""

    def __init__(self, model: Model, wrt: Names, fixed: Mapping[str, Any] | None, start: Mapping[str, Any] | None,
                 bounds: Bounds | None, sparse: bool, dtype: str | None, engine: str, threads: int | None) -> None:
        check_flag("sparse", sparse)
        self.sparse = sparse
        self.model = model if dtype is None else model.astype(dtype)
        self.variables = _Variables(self.model, wrt, start or {}, bounds or {})
        self.wrt = self.variables.names
        self._dtypes = {v.name: v.type.dtype.numpy for v in self.model.graph.inputs}
        self.fixed = self._cast(fixed or {})
        self._engine, self._threads = engine, threads
        self._programs: dict[str, tuple[Model, Any]] = {}
        self._last: tuple[Key, str, dict[str, Array]] | None = None

    @property
    def x0(self) -> Array:
        """Where the variables start, as one float64 vector."""
        return self.variables.pack(self.variables.start)

    @property
    def bounds(self) -> Any:
        """The bounds as ``scipy.optimize.Bounds``. Needs SciPy."""
        from scipy.optimize import Bounds as ScipyBounds

        sides = []
        for side, none in ((0, -np.inf), (1, np.inf)):
            given = {n: self.variables.bounds.get(n, (None, None)) for n in self.wrt}
            sides.append(self.variables.pack({n: none if pair[side] is None else pair[side] for n, pair in given.items()}))
        return ScipyBounds(*sides)

    def pack(self, arrays: Mapping[str, Any]) -> Array:
        """Return arrays by name as one float64 vector."""
        return self.variables.pack(arrays)

    def unpack(self, x: Any) -> dict[str, Array]:
        """Return a vector as arrays by name, in the shapes and dtypes of the variables."""
        return self.variables.unpack(x)

    def _cast(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        for name in feeds:
            if name not in self._dtypes or name in self.wrt:
                raise InputError(f"no other input {name!r}{suggestion(name, self._dtypes)}", code="name")
        return {name: np.asarray(a, self._dtypes[name]) for name, a in feeds.items()}

    def _run(self, kind: str, x: Any, feeds: Mapping[str, Any], extra: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run one of the derived models at ``x``. What was computed last at the same place is not computed again."""
        program = self._derived(kind)[1]
        arrays = {**self.fixed, **self._cast(feeds), **self.unpack(x), **(extra or {})}
        key = tuple((name, a.shape, a.tobytes()) for name, a in sorted(arrays.items()))
        if self._last is not None and self._last[:2] == (key, kind):
            return self._last[2]
        result: dict[str, Array] = program.run(arrays)
        self._last = key, kind, result
        return result

    @abstractmethod
    def _make(self, kind: str) -> Model:
        """Return the derived model called ``kind``."""

    def _derived(self, kind: str) -> tuple[Model, Any]:
        """Return a derived model and its program, made when first asked for."""
        if kind not in self._programs:
            made = self._make(kind)
            self._programs[kind] = made, made.compile(self._engine, self._threads)
        return self._programs[kind]

    def _made(self, kind: str) -> Model:
        return self._derived(kind)[0]

    def _hessian(self, result: Mapping[str, Array]) -> Any:
        pairs = {w: name for (role, _, w), name in self._made("hess").roles.items() if role == "hessian"}
        return self._matrix("hess", result, [[pairs[f"{n},{u}"] for u in self.wrt] for n in self.wrt])

    def _matrix(self, kind: str, result: Mapping[str, Array], names: Sequence[Sequence[str]]) -> Any:
        """Return the blocks called ``names``, each with columns for the variable of its place, as one matrix."""
        if self.sparse:
            from scipy.sparse import block_array

            patterns = self._made(kind).sparsity
            return block_array([[patterns[n].matrix(result[n]) for n in row] for row in names], format="csr")
        sizes = [math.prod(s) for s in self.variables.shapes.values()]
        rows = [[np.asarray(result[n], np.float64).reshape(-1, size) for n, size in zip(row, sizes, strict=True)]
                for row in names]
        return np.block(rows) if rows else np.zeros((0, 0))


class Objective(_Function):
    """A scalar of a model as a function of one float64 vector: ``minimize(f.fun, f.x0, jac=f.jac, hessp=f.hessp)``.

    ``of`` is the scalar (default: the only scalar output), ``wrt`` the variables: they lie in the vector one after the other,
    each flat. Other inputs are ``fixed``, or given by name with every call. ``start`` says where variables start (weights
    have a value, other inputs of static shape are zeros), ``bounds`` their least and largest values. With ``sparse``, Hessians
    are ``scipy.sparse`` arrays of a fixed pattern; that needs SciPy, and static shapes. The model computes in ``dtype``;
    None leaves it as it is. Vectors of any real type are taken. Raises like ``grad``.

    Examples:
        >>> objective = fg.Objective(model, of="loss", wrt="params", fixed=batch)
        >>> objective.x0.shape, objective.jac(objective.x0).shape
        ((67,), (67,))
    """

    def __init__(self, model: Model, of: str | Pick | None = None, wrt: Names = "inputs", *, fixed: Mapping[str, Any] | None = None,
                 start: Mapping[str, Any] | None = None, bounds: Bounds | None = None, sparse: bool = False,
                 dtype: str | None = "float64", engine: str = "numpy", threads: int | None = None) -> None:
        super().__init__(model, wrt, fixed, start, bounds, sparse, dtype, engine, threads)
        self.of = of if isinstance(of, Pick) else find_scalar(self.model.graph, of)[0]

    def _make(self, kind: str) -> Model:
        if kind == "hess":
            return hessian(self.model, self.of, self.wrt, sparse=self.sparse)
        transforms: dict[str, Callable[..., Model]] = {"grad": value_and_grad, "hvp": hvp}
        return transforms[kind](self.model, self.of, self.wrt)

    def fun(self, x: Any, /, **feeds: Any) -> float:
        """Return the scalar at ``x``."""
        return self.fun_and_jac(x, **feeds)[0]

    def jac(self, x: Any, /, **feeds: Any) -> Array:
        """Return the gradient at ``x``: one float64 vector."""
        return self.fun_and_jac(x, **feeds)[1]

    def fun_and_jac(self, x: Any, /, **feeds: Any) -> tuple[float, Array]:
        """Return both, as ``minimize(f.fun_and_jac, f.x0, jac=True)`` wants them."""
        result = self._run("grad", x, feeds)
        value, *gradients = (result[e.name] for e in self._made("grad").graph.output_entries)
        return float(np.reshape(value, ())), self.pack(dict(zip(self.wrt, gradients, strict=True)))

    def hessp(self, x: Any, p: Any, /, **feeds: Any) -> Array:
        """Return the Hessian at ``x`` times the vector ``p``."""
        roles = self._made("hvp").roles
        extra = {roles["tangent", "", n]: a for n, a in self.unpack(p).items()}
        result = self._run("hvp", x, feeds, extra)
        return self.pack({w: result[name] for (role, _, w), name in roles.items() if role == "hvp"})

    def hess(self, x: Any, /, **feeds: Any) -> Any:
        """Return the Hessian at ``x``: a float64 matrix."""
        return self._hessian(self._run("hess", x, feeds))


class VectorFunction(_Function):
    """Outputs of a model as one float64 vector, a function of one float64 vector: ``least_squares(f.fun, f.x0, f.jac)``.

    ``of`` is one or several outputs (default: all float ones), flat and one after the other. With ``sparse``, Jacobians are
    ``scipy.sparse`` arrays of a fixed pattern; that needs SciPy, and static shapes. The rest is as in ``Objective``.

    Examples:
        >>> f = fg.VectorFunction(model, of="logits", wrt=["w2", "b2"], fixed=batch)
        >>> f.fun(f.x0).shape, f.jac(f.x0).shape
        ((6,), (6, 27))
    """

    def __init__(self, model: Model, of: Of | None = None, wrt: Names = "inputs", *, fixed: Mapping[str, Any] | None = None,
                 start: Mapping[str, Any] | None = None, bounds: Bounds | None = None, sparse: bool = False,
                 dtype: str | None = "float64", engine: str = "numpy", threads: int | None = None) -> None:
        super().__init__(model, wrt, fixed, start, bounds, sparse, dtype, engine, threads)
        self.of = [name for name, _ in find_of(self.model.graph.copy(), of)]

    def _make(self, kind: str) -> Model:
        if kind == "fun":
            graph = self.model.graph.copy()
            find_wrt(graph, self.wrt)  # constants that are variables become parameters, which can be fed
            for name, value in find_of(graph, self.of):
                if all(e.name != name for e in graph.output_entries):
                    graph.add_output(value, name)
            for entry in graph.output_entries:
                if entry.name not in self.of:
                    graph.remove(entry)
            return self.model.with_graph(graph)
        if kind == "hess":
            return hessian(self._weighed(), WEIGHED, self.wrt, sparse=self.sparse)
        return jacobian(self.model, self.of, self.wrt, sparse=self.sparse)

    def fun(self, x: Any, /, **feeds: Any) -> Array:
        """Return the outputs at ``x``: one float64 vector."""
        return _joined([self._run("fun", x, feeds)[name] for name in self.of])

    def jac(self, x: Any, /, **feeds: Any) -> Any:
        """Return the Jacobian at ``x``: a float64 matrix, one row per element of the outputs."""
        result = self._run("jac", x, feeds)
        roles = self._made("jac").roles
        return self._matrix("jac", result, [[roles["jacobian", y, w] for w in self.wrt] for y in self.of])

    def hess(self, x: Any, v: Any, /, **feeds: Any) -> Any:
        """Return the Hessian at ``x`` of the outputs weighed by the vector ``v``, as ``NonlinearConstraint`` wants it."""
        vector = np.asarray(v, np.float64).reshape(-1)
        values = self._run("fun", x, feeds)
        sizes = [values[name].size for name in self.of]
        if sum(sizes) != vector.size:
            raise InputError(f"v is a vector of {sum(sizes)} real numbers, one for each element of {', '.join(self.of)}, got "
                             f"{vector.size}", code="shape")
        names = [i.name for i in self._made("hess").inputs][-len(self.of):]
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        weights = {name: part.reshape(values[y].shape).astype(values[y].dtype)
                   for name, y, part in zip(names, self.of, parts, strict=True)}
        return self._hessian(self._run("hess", x, feeds, weights))

    def _weighed(self) -> Model:
        """Return the model with one more output: the sum of the outputs times weights, which are its last inputs."""
        graph = self.model.graph.copy()
        b = Builder(graph, prefix="weighed", origin=graph.new_origin("weighed", ()))
        parts: list[Value] = []
        for name, value in find_of(graph, self.of):
            weight = graph.add_input(graph.unique_name(f"{name}_weight"), value.type)
            parts.append(b.ReduceSum(b.Mul(value, weight), keepdims=0))
        graph.add_output(sum_of(b, [b.cast_like(part, parts[0]) for part in parts]), WEIGHED)
        return self.model.with_graph(graph)


def _joined(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in arrays]) if arrays else np.zeros(0)
