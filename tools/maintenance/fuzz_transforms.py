"""The checks of the fuzzer for transforms that make many derivatives at once: each beside one derivative after the other.

``python -m flowgrad.tools.maintenance.fuzz --checks vmap,jacobian,hessian,nests --nodes 8 --favour branch,loop,scan``
"""

from __future__ import annotations

import collections
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import EngineError, FlowgradError, NotDifferentiableError, RunError, UnsupportedError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.ops.operands import sum_of
from flowgrad.model import Model
from flowgrad.tools.maintenance.fuzz_checks import ORT_LIMITS, STEPS, TOLERANCE, Check, Feeds, meets_nothing
from flowgrad.transforms.batching import vmap
from flowgrad.transforms.checkpointing import checkpoint
from flowgrad.transforms.derivatives import grad, hvp, jvp, vjp
from flowgrad.transforms.hessians import hessian
from flowgrad.transforms.jacobians import jacobian

MOST_ELEMENTS = 40
"""How many elements inputs and outputs may have for Jacobians; products with the Hessian are made one for each."""

SHARE = 3
"""One model of so many is compiled as well, and one of so many exported: that takes longest."""

LARGE = 1e4
"""Derivatives above this are not compared: rounding is."""

TOLERANCES = {**TOLERANCE, "bfloat16": 0.1}

AMPLIFIED = 32
"""How often the error of a narrow result may exceed that of the same derivatives made one after the other."""

Exact = Callable[[], Feeds]
"""Makes the expected arrays again in float64."""

COMPARED: collections.Counter[str] = collections.Counter()
"""How many arrays were compared, by what made them."""


class _Skip(Exception):
    """Why nothing is looked at."""


def _reasons(check: Callable[[Graph, Feeds, np.random.Generator], None], *, smooth_only: bool = True) -> Check:
    """Return a check of one of the sets of inputs, in which what is refused by name is a reason to skip."""

    def checked(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> str | None:
        if smooth_only and not smooth:
            return "not finite"
        rng = _drawn(graph.name)
        try:
            check(graph, feeds[int(rng.integers(len(feeds)))], rng)
        except _Skip as reason:
            return str(reason)
        except (UnsupportedError, NotDifferentiableError) as error:
            return f"refused: {error.code}: {' '.join(str(error).split())[-110:]}"
        return None

    return checked


# ---- comparisons ----------------------------------------------------------------------------------------------------------


def _near(model: Model, got: Mapping[str, Array], expected: Feeds, what: str, exact: Exact | None = None, slack: float = 1.0
          ) -> None:
    """Check arrays that a model gave against those expected; those that are far off may be so by rounding, as ``exact`` ones
    tell."""
    wide: Feeds | None = None
    computing = {v.type.dtype.name for v in model.graph.values.values() if v.producer.op != "ConstantOfShape"}
    coarsest = max((TOLERANCES[n] for n in computing if n in TOLERANCES), default=0.0)
    for name, array in expected.items():
        mine = got[name]
        assert mine.dtype == array.dtype and mine.shape == array.shape, (
            f"{what}: {name} is {mine.dtype}{mine.shape}, not {array.dtype}{array.shape}")
        COMPARED[what.split(",")[0]] += 1
        if array.dtype.name not in TOLERANCES:
            assert np.array_equal(mine, array), f"{what}: {name} is\n{mine}\nnot\n{array}"
            continue
        a, b = mine.astype(float), array.astype(float)
        bound = slack * coarsest * max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
        if _within(a, b, bound):
            continue
        if exact is not None and coarsest > TOLERANCE["float64"]:
            wide = wide or exact()
            error = float(np.abs(b - wide[name]).max(initial=0.0))
            if _within(a, wide[name], bound + AMPLIFIED * error):
                continue
        raise AssertionError(f"{what}: {name} is\n{mine}\nnot\n{array}")


def _within(a: Array, b: Array, bound: float) -> bool:
    finite = np.isfinite(a) & np.isfinite(b)
    return np.array_equal(a[~finite], b[~finite], equal_nan=True) and not (np.abs(a - b)[finite] > bound).any()


def _run(model: Model, given: Feeds) -> Feeds:
    return dict(model.compile(threads=1).run(_chosen(model.graph, given)))


def _chosen(graph: Graph, given: Feeds) -> Feeds:
    return {v.name: given[v.name] for v in graph.inputs}


def _everywhere(model: Model, given: Feeds, expected: Feeds, what: str, exact: Exact | None = None, *, exported: bool = False
                ) -> None:
    """Check what a model gives, and one of so many optimised and compiled, and in onnxruntime where that has the kernels."""
    _near(model, evaluate(model.graph, _chosen(model.graph, given)), expected, what, exact)
    chance = _drawn(f"{model.graph.name} {what}")
    if chance.random() < 1 / SHARE:
        _near(model, _run(model, given), expected, f"{what}, compiled", exact)
    if not exported or chance.random() >= 1 / SHARE or any(n.op in STEPS for _, n in model.graph.walk()):
        return
    fed = _chosen(model.graph, given)
    if meets_nothing(model.graph, [fed]):
        return
    for threads in (1, 4):
        try:
            got = model.compile(engine="ort", threads=threads).run(fed)
        except (EngineError, RunError) as error:
            if any(part in str(error) for part, _ in ORT_LIMITS):
                return
            raise
        _near(model, got, expected, f"{what} in onnxruntime, {threads} threads", exact, 3.0)


def _wide(model: Model) -> Model:
    return model.astype("float64")


def _widened(given: Feeds) -> Feeds:
    return {k: a.astype(np.float64) if a.dtype.name in TOLERANCES else a for k, a in given.items()}


def _exactly(make: Callable[[Model, Feeds], Feeds], model: Model, given: Feeds) -> Exact:
    return lambda: make(_wide(model), _widened(given))


# ---- vmap -----------------------------------------------------------------------------------------------------------------


def _drawn(name: str, *more: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()), *more])


def _examples(array: Array, name: str, count: int) -> list[Array]:
    """Return inputs like ``array``: moved a little, or with their elements in another order."""
    rng = _drawn(name, 1)
    if array.dtype.name in TOLERANCES:
        moves = [0.1 * rng.standard_normal(array.shape) if k else 0 for k in range(count)]
        return [(array.astype(float) + move).astype(array.dtype) for move in moves]
    return [np.roll(array.reshape(-1), k).reshape(array.shape) for k in range(count)]


def _vmap(graph: Graph, given: Feeds, rng: np.random.Generator) -> None:
    """Some of the inputs, split at any axis, beside a run for each example."""
    model, count = Model(graph), int(rng.choice([0, 1, 2, 3]))
    names = [v.name for v in graph.inputs if _drawn(v.name).random() < 0.7] or [v.name for v in graph.inputs][:1]
    if not names:
        raise _Skip("no inputs")
    axes = {n: int(_drawn(n, 2).integers(-given[n].ndim - 1, given[n].ndim + 1)) for n in names}
    split = {n: _examples(given[n], n, max(count, 1)) for n in names}
    singles = [{**given, **{n: split[n][k] for n in names}} for k in range(max(count, 1))]
    try:
        results = [evaluate(graph, _chosen(graph, one)) for one in singles]
    except FlowgradError as error:
        raise _Skip("an example does not run") from error
    many = {**given, **{n: np.stack(split[n], axes[n]) for n in names}}
    if not count:
        many.update({n: np.take(many[n], [], axes[n]) for n in names})
    is_ragged = any(len({r[y].shape for r in results}) > 1 for y in results[0])
    outer = {y: int(_drawn(y, 3).integers(-a.ndim - 1, a.ndim + 1)) for y, a in results[0].items()}
    made = vmap(model, axes, outer)
    if is_ragged:
        try:
            _run(made, many)
        except FlowgradError:
            return
        raise AssertionError("vmap: ragged results are not refused")

    def expected(model: Model, given: Feeds) -> Feeds:
        wide = given is not many and model is not None
        found = [evaluate(model.graph, _chosen(model.graph, _widened(one) if wide else one)) for one in singles]
        stacked = {y: np.stack([r[y] for r in found], outer[y]) for y in found[0]}
        return stacked if count else {y: np.take(a, [], outer[y]) for y, a in stacked.items()}

    _everywhere(made, many, expected(model, many), f"vmap of {min(count, 1) or 'no'} examples", _exactly(expected, model, many),
                exported=count > 0 and all((np.abs(a.astype(float)) < LARGE).all() for a in given.values()))


# ---- Jacobians --------------------------------------------------------------------------------------------------------------


def _ends(graph: Graph, given: Feeds) -> tuple[list[str], list[str], Feeds]:
    """Return names to differentiate, and by which, and the outputs; _Skip where there are none, or too large ones."""
    outputs = evaluate(graph, given)
    wrt = [v.name for v in graph.inputs if v.type.dtype.is_float]
    of = [e.name for e in graph.output_entries if e.input(0).type.dtype.is_float]
    if not wrt or not of:
        raise _Skip("no floats in, or none out")
    if any(v.type.shape is None for v in (*graph.inputs, *graph.outputs)):
        raise _Skip("no rank")
    if sum(given[x].size for x in wrt) > MOST_ELEMENTS or sum(outputs[y].size for y in of) > MOST_ELEMENTS:
        raise _Skip("too many elements")
    return of, wrt, outputs


def _units(array: Array) -> Iterator[Array]:
    for place in range(array.size):
        unit = np.zeros(array.size)
        unit[place] = 1
        yield unit.reshape(array.shape).astype(array.dtype)


def _turned(columns: Sequence[Array], x: Array, y: Array) -> Array:
    """Return derivatives of ``y`` by each element of ``x``, with the axes of ``y``, then those of ``x``, in float64."""
    flat = np.array([c.astype(float).reshape(-1) for c in columns]).reshape(x.size, y.size)
    return flat.T.reshape((*y.shape, *x.shape))


def _shaped(terms: Sequence[Array], count: int, like: Array) -> Array:
    """Return the sum of rows of numbers as ``count`` arrays like ``like``."""
    return np.asarray(sum(terms)).reshape((count, *like.shape)).astype(like.dtype)


def _named(model: Model, kind: str, place: int) -> dict[str, str]:
    """Return by what roles of a kind speak of, in one of their places, the names of the values that have them."""
    return {role[place]: name for role, name in model.roles.items() if role[0] == kind and role[place]}


def _by_rows(of: Sequence[str], wrt: Sequence[str]) -> Callable[[Model, Feeds], Feeds]:
    """Return what makes Jacobians of a model by one cotangent after the other."""

    def make(model: Model, given: Feeds) -> Feeds:
        pulled, outputs = vjp(model, list(of), list(wrt), zero="allow"), evaluate(model.graph, given)
        bars, grads = _named(pulled, "cotangent", 1), _named(pulled, "grad", 2)
        still = {bars[y]: np.zeros_like(outputs[y]) for y in of}
        found = {}
        for y in of:
            rows = [evaluate(pulled.graph, {**given, **still, bars[y]: unit}) for unit in _units(outputs[y])]
            for x in wrt:
                block = np.array([r[grads[x]].astype(float) for r in rows]).reshape((*outputs[y].shape, *given[x].shape))
                found[f"{y}_{x}_jacobian"] = block.astype(outputs[y].dtype)
        return found

    return make


def _by_columns(of: Sequence[str], wrt: Sequence[str]) -> Callable[[Model, Feeds], Feeds]:
    """Return what makes Jacobians of a model by one tangent after the other."""

    def make(model: Model, given: Feeds) -> Feeds:
        pushed, outputs = jvp(model, list(of), list(wrt), zero="allow"), evaluate(model.graph, given)
        dots, tangents = _named(pushed, "tangent", 2), _named(pushed, "tangent", 1)
        still = {dots[x]: np.zeros_like(given[x]) for x in wrt}
        found = {}
        for x in wrt:
            columns = [evaluate(pushed.graph, {**given, **still, dots[x]: unit}) for unit in _units(given[x])]
            for y in of:
                block = _turned([c[tangents[y]] for c in columns], given[x], outputs[y])
                found[f"{y}_{x}_jacobian"] = block.astype(outputs[y].dtype)
        return found

    return make


def _moderate(found: Feeds) -> Feeds:
    """Return arrays that can be compared; _Skip if one holds numbers that are large or not finite."""
    for array in found.values():
        limit = 100.0 if array.dtype.itemsize == 2 else LARGE
        if array.dtype.name in TOLERANCES and not (np.abs(array.astype(float)) < limit).all():
            raise _Skip("large derivatives")
    return found


def _dense(found: Feeds, name: str) -> Array:
    """Return a sparse derivative as a dense matrix, in float64."""
    dense = np.zeros(found[f"{name}_shape"])
    dense[found[f"{name}_rows"], found[f"{name}_cols"]] = found[name].astype(float)
    return dense


def _jacobian(graph: Graph, given: Feeds, rng: np.random.Generator) -> None:
    """Jacobians in both modes, whole, by chunks, sparse, exported; many cotangents and tangents; for examples."""
    model = Model(graph)
    of, wrt, outputs = _ends(graph, given)
    by_rows = _by_rows(of, wrt)
    expected, exact = _moderate(by_rows(model, given)), _exactly(by_rows, model, given)
    _near(model, _by_columns(of, wrt)(model, given), expected, "jvp beside vjp", exact)
    for mode in ("rev", "fwd"):
        for chunk_size in (None, int(rng.integers(1, 6))):
            made = jacobian(model, of, wrt, mode=mode, chunk_size=chunk_size, zero="allow")
            what = f"jacobian {mode}" + (f" by chunks, {chunk_size}" if chunk_size else "")
            _everywhere(made, given, expected, what, exact, exported=True)
    _seeds(model, given, of, wrt, outputs, expected)
    if all(v.type.is_static for v in graph.inputs) and all(v.type.is_static for v in graph.outputs):
        _sparse_jacobian(model, given, of, wrt, expected, exact)
    both = {**given, **{x: np.stack(_examples(given[x], x, 2)) for x in wrt}}
    some = jacobian(model, of, wrt, mode="rev" if rng.random() < 0.5 else "fwd", zero="allow")
    each = vmap(some, dict.fromkeys(wrt, 0))

    def of_each(model: Model, given: Feeds) -> Feeds:
        rows = [by_rows(model, {**given, **{x: given[x][k] for x in wrt}}) for k in range(2)]
        return {name: np.stack([r[name] for r in rows]) for name in rows[0]}

    _everywhere(each, both, _moderate(of_each(model, both)), "vmap of jacobian", _exactly(of_each, model, both), exported=True)


def _sparse_jacobian(model: Model, given: Feeds, of: Sequence[str], wrt: Sequence[str], expected: Feeds, exact: Exact) -> None:
    for mode in ("rev", "fwd"):
        try:
            found = _run(jacobian(model, of, wrt, mode=mode, sparse=True, zero="allow"), given)
        except (UnsupportedError, NotDifferentiableError) as error:
            COMPARED[f"sparse jacobian refused: {' '.join(str(error).split())[:90]}"] += 1
            continue
        dense = {k: _dense(found, k).reshape(a.shape).astype(a.dtype) for k, a in expected.items()}
        _near(model, dense, expected, f"sparse jacobian {mode}", exact)


def _seeds(model: Model, given: Feeds, of: Sequence[str], wrt: Sequence[str], outputs: Feeds, expected: Feeds) -> None:
    """Check three cotangents and tangents at once beside products with the Jacobian."""
    rng = np.random.default_rng(4)
    pulled, pushed = vjp(model, of, wrt, seeds=3, zero="allow"), jvp(model, of, wrt, seeds="seeds", zero="allow")
    bars = {y: np.asarray(rng.standard_normal((3, *outputs[y].shape))).astype(outputs[y].dtype) for y in of}
    dots = {x: np.asarray(rng.standard_normal((3, *given[x].shape))).astype(given[x].dtype) for x in wrt}
    blocks = {(y, x): expected[f"{y}_{x}_jacobian"].astype(float).reshape(outputs[y].size, given[x].size)
              for y in of for x in wrt}
    grads, tangents = _named(pulled, "grad", 2), _named(pushed, "tangent", 1)
    flat_bars = {y: a.astype(float).reshape(3, outputs[y].size) for y, a in bars.items()}
    flat_dots = {x: a.astype(float).reshape(3, given[x].size) for x, a in dots.items()}
    down = {grads[x]: _shaped([flat_bars[y] @ blocks[y, x] for y in of], 3, given[x]) for x in wrt}
    across = {tangents[y]: _shaped([flat_dots[x] @ blocks[y, x].T for x in wrt], 3, outputs[y]) for y in of}
    named = _named(pulled, "cotangent", 1), _named(pushed, "tangent", 2)
    for made, seeds, wanted, what in ((pulled, {named[0][y]: a for y, a in bars.items()}, down, "vjp of seeds"),
                                      (pushed, {named[1][x]: a for x, a in dots.items()}, across, "jvp of seeds")):
        found = _run(made, {**given, **seeds})
        _near(made, found, {y: a for y, a in outputs.items() if y in found}, f"{what}, values")
        _near(made, found, wanted, what, None, 10.0)


# ---- Hessians ---------------------------------------------------------------------------------------------------------------

SCALAR = "sum_of_sines"


def _scalar(graph: Graph, of: Sequence[str]) -> Model:
    """Return the model of the sum of the sines of some outputs, which is curved everywhere and never large."""
    copy = graph.copy()
    b = Builder(copy, prefix=SCALAR)
    dtype = copy.output_entries[0].input(0).type.dtype
    found = {e.name: e.input(0) for e in copy.output_entries}
    dtype = found[of[0]].type.dtype
    terms = [b.cast(b.ReduceSum(b.Sin(found[y]), keepdims=0), dtype) for y in of]
    for entry in copy.output_entries:
        copy.remove(entry)
    copy.add_output(sum_of(b, terms), SCALAR)
    return Model(copy)


def _by_products(wrt: Sequence[str]) -> Callable[[Model, Feeds], Feeds]:
    """Return what makes Hessians of a model by one product after the other."""

    def make(model: Model, given: Feeds) -> Feeds:
        product = hvp(model, SCALAR, list(wrt), zero="allow")
        dots, products = _named(product, "tangent", 2), _named(product, "hvp", 2)
        still = {dots[x]: np.zeros_like(given[x]) for x in wrt}
        found = {}
        for u in wrt:
            columns = [evaluate(product.graph, {**given, **still, dots[u]: unit}) for unit in _units(given[u])]
            for x in wrt:
                block = _turned([c[products[x]] for c in columns], given[u], given[x])
                found[f"{x}_{u}_hessian"] = block.astype(given[x].dtype)
        return found

    return make


def _hessian(graph: Graph, given: Feeds, rng: np.random.Generator) -> None:
    """Hessians, whole, by chunks, diagonal, sparse, exported; many products; for examples."""
    of, wrt, _ = _ends(graph, given)
    model = _scalar(graph, of)
    by_products = _by_products(wrt)
    expected, exact = _moderate(by_products(model, given)), _exactly(by_products, model, given)
    turned = {f"{x}_{u}_hessian": np.moveaxis(expected[f"{u}_{x}_hessian"], range(given[u].ndim), range(-given[u].ndim, 0))
              .astype(given[x].dtype) for x in wrt for u in wrt}
    _near(model, turned, expected, "symmetry", exact, 10.0)

    def diagonals(whole: Feeds) -> Feeds:
        squares = {x: whole[f"{x}_{x}_hessian"].reshape(given[x].size, given[x].size) for x in wrt}
        return {f"{x}_hessian_diagonal": np.diagonal(square).reshape(given[x].shape) for x, square in squares.items()}

    for chunk_size in (None, int(rng.integers(1, 5))):
        what = "hessian" + (f" by chunks, {chunk_size}" if chunk_size else "")
        _everywhere(hessian(model, SCALAR, wrt, chunk_size=chunk_size, zero="allow"), given, expected, what, exact,
                    exported=True)
        _everywhere(hessian(model, SCALAR, wrt, diagonal=True, chunk_size=chunk_size, zero="allow"), given, diagonals(expected),
                    f"diagonal of the {what}", lambda: diagonals(exact()))
    if all(v.type.is_static for v in graph.inputs):
        try:
            found = _run(hessian(model, SCALAR, wrt, sparse=True, zero="allow"), given)
        except (UnsupportedError, NotDifferentiableError) as error:
            COMPARED[f"sparse hessian refused: {' '.join(str(error).split())[:90]}"] += 1
        else:
            dense = {k: _dense(found, k).reshape(a.shape).astype(a.dtype) for k, a in expected.items()}
            _near(model, dense, expected, "sparse hessian", exact, 10.0)
    both = {**given, **{x: np.stack(_examples(given[x], x, 2)) for x in wrt}}

    def of_each(model: Model, given: Feeds) -> Feeds:
        rows = [by_products(model, {**given, **{x: given[x][k] for x in wrt}}) for k in range(2)]
        return {name: np.stack([r[name] for r in rows]) for name in rows[0]}

    each = vmap(hessian(model, SCALAR, wrt, zero="allow"), dict.fromkeys(wrt, 0))
    _everywhere(each, both, _moderate(of_each(model, both)), "vmap of hessian", _exactly(of_each, model, both))


# ---- nests ------------------------------------------------------------------------------------------------------------------


def _nests(graph: Graph, given: Feeds, rng: np.random.Generator) -> None:
    """Gradients of gradients, forward over reverse and reverse over forward, and what recomputes, beside Hessians."""
    of, wrt, _ = _ends(graph, given)
    model = _scalar(graph, of)
    whole = _moderate(_by_products(wrt)(model, given))
    first = grad(model, SCALAR, wrt, keep=SCALAR, zero="allow")
    grads = _named(first, "grad", 2)
    slopes = _moderate(_run(first, given))
    names = list(grads.values())
    blocks = {f"{grads[x]}_{u}_jacobian": whole[f"{x}_{u}_hessian"].astype(slopes[grads[x]].dtype) for x in wrt for u in wrt}
    exact = None
    for mode in ("rev", "fwd"):
        made = jacobian(first, names, wrt, mode=mode, zero="allow")
        _near(first, _run(made, given), blocks, f"jacobian {mode} of grad", exact, 10.0)
    kept = checkpoint(first)
    again = _run(kept, given)
    assert all(again[k].tobytes() == a.tobytes() for k, a in slopes.items()), f"checkpoint: {again}, not {slopes}"
    COMPARED["checkpoint"] += len(slopes)
    _near(first, _run(jacobian(kept, names, wrt, zero="allow"), given), blocks, "jacobian of checkpoint", exact, 10.0)
    both = {**given, **{x: np.stack(_examples(given[x], x, 2)) for x in wrt}}
    found = _run(vmap(kept, dict.fromkeys(wrt, 0)), both)
    rows = [_run(first, {**given, **{x: both[x][k] for x in wrt}}) for k in range(2)]
    _near(first, found, _moderate({n: np.stack([r[n] for r in rows]) for n in slopes}), "vmap of checkpoint", exact, 10.0)
    _products(model, first, given, wrt, whole)


def _products(model: Model, first: Model, given: Feeds, wrt: Sequence[str], whole: Feeds) -> None:
    """Check products with the Hessian by each order of modes, and that by many seeds."""
    grads = _named(first, "grad", 2)
    rng = np.random.default_rng(6)
    v = {x: np.asarray(rng.standard_normal(given[x].shape)).astype(given[x].dtype) for x in wrt}
    flat = {u: a.astype(float).reshape(1, given[u].size) for u, a in v.items()}
    rows = {(x, u): whole[f"{x}_{u}_hessian"].astype(float).reshape(given[x].size, given[u].size) for x in wrt for u in wrt}
    expected = {x: _shaped([flat[u] @ rows[x, u].T for u in wrt], 1, given[x])[0] for x in wrt}
    _moderate(expected)
    pulled = vjp(first, [grads[x] for x in wrt], wrt, zero="allow")
    bars = _named(pulled, "cotangent", 1)
    back = {n: g for (r, _, n), g in pulled.roles.items() if r == "grad" and g not in grads.values() and n in wrt}
    found = _run(pulled, {**given, **{bars[grads[x]]: v[x] for x in wrt}})
    _near(first, {x: found[g] for x, g in back.items()}, {x: expected[x] for x in back}, "vjp of grad", None, 10.0)
    pushed = jvp(model, SCALAR, wrt, zero="allow")
    dots, tangent = _named(pushed, "tangent", 2), pushed.roles["tangent", SCALAR, ""]
    over = grad(pushed, tangent, wrt, zero="allow")
    names = {n: g for (r, o, n), g in over.roles.items() if r == "grad" and o == tangent}
    found = _run(over, {**given, **{dots[x]: v[x] for x in wrt}})
    _near(first, {x: found[names[x]] for x in wrt}, expected, "grad of jvp", None, 10.0)
    many = hvp(model, SCALAR, wrt, seeds=2, zero="allow")
    dots, products = _named(many, "tangent", 2), _named(many, "hvp", 2)
    found = _run(many, {**given, **{dots[x]: np.stack([v[x], np.zeros_like(v[x])]) for x in wrt}})
    wanted = {x: np.stack([a, np.zeros_like(a)]) for x, a in expected.items()}
    _near(first, {x: found[products[x]] for x in wrt}, wanted, "hvp of seeds", None, 10.0)


# ---- bfloat16 ----------------------------------------------------------------------------------------------------------------


def _in_bfloat16(graph: Graph, given: Feeds, rng: np.random.Generator) -> None:
    """vmap and Jacobians of the graph in bfloat16."""
    from flowgrad.ir.types import dtype_of

    narrow = dtype_of("bfloat16").numpy
    cast = Model(graph).astype("bfloat16")
    fed = {k: a.astype(narrow) if a.dtype.name in TOLERANCES else a for k, a in given.items()}
    outputs = evaluate(cast.graph, fed)
    if not all(np.isfinite(a.astype(float)).all() for a in outputs.values() if a.dtype.name in TOLERANCES):
        raise _Skip("not finite")
    _vmap(cast.graph, fed, rng)
    _jacobian(cast.graph, fed, rng)


TRANSFORMS: dict[str, tuple[Check, float]] = {
    "vmap": (_reasons(_vmap, smooth_only=False), 0.4),
    "jacobian": (_reasons(_jacobian), 0.2),
    "hessian": (_reasons(_hessian), 0.1),
    "nests": (_reasons(_nests), 0.1),
    "bfloat16": (_reasons(_in_bfloat16), 0.05),
}
"""The checks, and the share of graphs that each looks at."""
