"""``python -m flowgrad.tools.maintenance.every_derivative MODEL ...``: all derivatives of whole models, one line a model.

MODEL is an entry with reference data (a folder, see ``flowgrad zoo``), a folder of such entries, or an ``.onnx`` file, whose
inputs are made up, and its weights where the file only has their shapes (see ``flowgrad light``). Differences of files with very
many kinks step over some of them: ``--smooth`` takes those out. What is differentiated is the sum of all elements of all outputs,
each times a weight that is an input.

* ``jvp`` and ``hvp``, by the weights of the model and by its inputs, in float64: against differences along a random
  direction, <y_bar, J v> = <J^T y_bar, v>, and <u, H v> = <v, H u>;
* ``vmap`` of the gradient of one example (or, where a file fixes the extent of its batch, of one batch) against the gradient
  at each by itself, in float64;
* each of these in float32, in the engine and exported in onnxruntime;
* with ``--torch``, each of these in float64 against torch.func, the operators of the model written a second time in PyTorch.

``--times`` adds what they cost: a product with the Hessian beside the optimised model, and gradients of 64 examples, each by
itself, beside the gradient of their sum; medians of 7 on one thread,
in seconds of the processor, so that other processes count little.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import FlowgradError, InputError
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.ops.operands import sum_of
from flowgrad.model import Model, load
from flowgrad.passes.differences import moved
from flowgrad.tools.light import drawn_twin, smooth_twin
from flowgrad.tools.samples import sample_inputs
from flowgrad.tools.zoo import entries, read_entry
from flowgrad.transforms.batching import vmap
from flowgrad.transforms.derivatives import grad, hvp, jvp, value_and_grad
from flowgrad.transforms.editing import unbatch

if TYPE_CHECKING:
    from flowgrad.tools.maintenance.torch_func import Mirrored

EXAMPLE = "example: python -m flowgrad.tools.maintenance.every_derivative models/lenet --times"

SUM = "weighted_sum"

STEP = 1e-6
"""Of central differences, times the size of what is moved: small beside the distance from most kinks."""

DIFFERENCES = 1e-5
"""Distance allowed between a derivative and central differences, of the largest element of its array."""

EXACT = 1e-10
"""Relative distance allowed between two ways to the same number in float64."""

FLOAT32, ROUNDING = 1e-4, 20
"""Distance allowed between two float32 evaluations: of the largest element, or times that of the engine from float64."""

EXAMPLES = 64

Arrays = dict[str, Array]


@dataclass
class Row:
    """What came of one model: the worst distance of each kind of check, sizes, times, and what is wrong or refused."""

    name: str
    worst: dict[str, float] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    each: str = ""
    scans: int = 0
    """How many more the gradients of examples have than the gradient of one: operators that go one example after the other."""
    times: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def hold(self, what: str, kind: str, error: float, allowed: float) -> None:
        """Note an error of ``what``, and that it is wrong if it is above what is allowed (or NaN)."""
        self.worst[kind] = max(self.worst.get(kind, 0.0), error) if error == error else error
        if not error <= allowed:
            self.wrong.append(f"{what}: {kind} {error:.2g} > {allowed:.0g}")

    def __str__(self) -> str:
        parts = [f"{self.name:28} {'wrong' if self.wrong else 'refused' if self.refused else 'ok':8}"]
        parts.append("nodes " + " ".join(f"{k} {n}" for k, n in self.nodes.items()) + f"  each {self.each}, {self.scans} scans more")
        parts.append(" ".join(f"{k} {e:.1e}" for k, e in self.worst.items()))
        parts += [" ".join(f"{k} {t:.2f}x" for k, t in self.times.items())] if self.times else []
        return "  ".join([*parts, *self.wrong, *self.refused, *self.notes])


@dataclass
class Subject:
    """A model with the sum that is differentiated, and what is fed to it, weights of the sum among it."""

    name: str
    model: Model
    feeds: Arrays

    def double(self) -> Subject:
        """Return the same in float64."""
        return Subject(self.name, self.model.astype("float64"), {k: _wide(a) for k, a in self.feeds.items()})


# ---- subjects -------------------------------------------------------------------------------------------------------------


def subjects(path: Path, names: Sequence[str] | None, *, smooth: bool) -> Iterator[Subject]:
    """Yield what a path stands for; raises InputError and LoadError."""
    if path.is_file():
        model = (smooth_twin if smooth else drawn_twin)(load(path))
        feeds, _ = sample_inputs(model.graph, 0, {})
        yield subject(path.stem, model, feeds, [o.name for o in model.outputs if o.dtype in ("float32", "float64")])
        return
    for folder in entries(path, list(names) if names else None):
        meta, data = read_entry(folder)
        feeds = {i["name"]: data["in/" + i["name"]] for i in meta["inputs"]}
        yield subject(folder.name, load(folder / "model.onnx"), feeds, [o["name"] for o in meta["outputs"] if o["cotangent"]])


def subject(name: str, model: Model, feeds: Mapping[str, Array], outputs: Sequence[str]) -> Subject:
    """Return ``model`` with the sum of its ``outputs``, each element times a weight that is drawn."""
    graph, rng = model.graph.copy(), np.random.default_rng(1)
    found, b = {e.name: e.input(0) for e in graph.output_entries}, Builder(graph)
    for entry in graph.output_entries:
        if entry.name not in outputs:
            graph.remove(entry)
    weights = {y: graph.add_input(graph.unique_name(f"{y}_weight"), found[y].type) for y in outputs}
    graph.add_output(sum_of(b, [b.ReduceSum(b.Mul(found[y], w), keepdims=0) for y, w in weights.items()]), SUM)
    values = model(dict(feeds))
    drawn = {w.name: np.asarray(rng.standard_normal(values[y].shape)).astype(values[y].dtype) for y, w in weights.items()}
    return Subject(name, model.with_graph(graph), {**feeds, **drawn})


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


# ---- checks ---------------------------------------------------------------------------------------------------------------


def check(given: Subject, *, torch: bool = False) -> Row:
    """Check all derivatives of one subject, with ``torch`` beside PyTorch as well."""
    row = Row(given.name)
    row.nodes["model"] = len(given.model.optimized().graph)
    wrts = ["params", "inputs"] if _inputs(given) else ["params"]
    for wrt in wrts:
        _attempt(row, f"jvp and hvp by {wrt}", lambda wrt=wrt: _products(given, row, wrt, torch))  # type: ignore[misc]
    _attempt(row, "vmap", lambda: _each(given, row, torch))
    return row


def _inputs(given: Subject) -> list[str]:
    """Return the float inputs of the model itself."""
    weights = {f"{o.name}_weight" for o in given.model.outputs}
    return [v.name for v in given.model.graph.inputs if v.type.dtype.is_float and v.name not in weights]


def _attempt(row: Row, what: str, action: Callable[[], None]) -> None:
    try:
        action()
    except FlowgradError as error:
        row.refused.append(f"{what}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")


def _products(given: Subject, row: Row, wrt: str, torch: bool) -> None:
    """Check jvp and hvp by the weights or by the inputs."""
    exact = given.double()
    names = _inputs(exact) if wrt == "inputs" else [p.name for p in exact.model.params if p.included]
    outputs = [o.name for o in exact.model.outputs if o.name != SUM]
    base = value_and_grad(exact.model, SUM, names, keep=outputs)
    push, product = jvp(exact.model, outputs, names), hvp(exact.model, SUM, names)
    at = {n: exact.feeds[n] if n in exact.feeds else np.asarray(base.graph.value(n).producer.data) for n in names}
    u, v = _directions(at, 2), _directions(at, 3)
    pushed, along_v = _run(push, {**exact.feeds, **_tangents(v)}), _run(product, {**exact.feeds, **_tangents(v)})
    along_u = _run(product, {**exact.feeds, **_tangents(u)})
    program = base.compile(threads=1)
    here = program.run(dict(exact.feeds))
    plus, minus = (program.run(moved({**exact.feeds, **at}, v, step)) for step in (STEP, -STEP))
    slopes = {y: (plus[y] - minus[y]) / (2 * STEP) for y in here}

    gradients, h_v, h_u = ({n: found[f"{n}_{kind}"] for n in names}
                           for found, kind in ((here, "grad"), (along_v, "hvp"), (along_u, "hvp")))
    tangents = {y: pushed[f"{y}_tangent"] for y in outputs}
    row.hold(f"jvp by {wrt}", "difference", _distance(tangents, {y: slopes[y] for y in outputs}), DIFFERENCES)
    row.hold(f"hvp by {wrt}", "difference", _distance(h_v, {n: slopes[f"{n}_grad"] for n in names}), DIFFERENCES)
    bars = {y: exact.feeds[f"{y}_weight"] for y in outputs}
    row.hold(f"jvp by {wrt}", "dot", _apart(_dot(bars, tangents), _dot(gradients, v)), EXACT)
    row.hold(f"gradient by {wrt}", "difference", _apart(_dot(bars, {y: slopes[y] for y in outputs}), _dot(gradients, v)),
             DIFFERENCES)
    row.hold(f"hvp by {wrt}", "symmetry", _apart(_dot(u, h_v), _dot(v, h_u)), EXACT)
    row.hold(f"hvp by {wrt}", "gradient", _distance({n: along_v[f"{n}_grad"] for n in names}, gradients), EXACT)
    if torch:
        _beside_torch(row, exact.model, exact.feeds, names, f"by {wrt}", lambda theirs: (
            ("jvp", theirs.jvp(v, outputs), tangents), ("gradient", theirs.gradient(SUM), gradients),
            ("hvp", theirs.hvp(v, SUM), h_v)))
    for kind, found, results in (("jvp", jvp(given.model, outputs, names), pushed), ("hvp", hvp(given.model, SUM, names), along_v)):
        row.nodes[f"{kind} {wrt}"] = len(found.optimized().graph)
        _in_both_engines(row, f"{kind} by {wrt}", found, {**given.feeds, **_narrow(_tangents(v))}, results)


def _each(given: Subject, row: Row, torch: bool) -> None:
    """Check the gradients of each example by itself."""
    exact = given.double()
    wrt = [*(p.name for p in exact.model.params if p.included), *_inputs(exact)]
    row.each, one, many, alone = _examples(given)
    found = vmap(grad(one, SUM, wrt))
    together = _run(vmap(grad(one.astype("float64"), SUM, wrt)), {k: _wide(a) for k, a in many.items()})
    single = grad(exact.model, SUM, wrt).compile(threads=1)
    separate = [single.run(feeds) for feeds in alone]
    expected = {k: np.stack([s[k].reshape(a.shape[1:]) for s in separate]) for k, a in together.items()}
    row.hold("vmap", "each", _distance(together, expected), EXACT)
    if torch:
        mine, wide = {x: together[f"{x}_grad"] for x in wrt}, {k: _wide(a) for k, a in many.items()}
        _beside_torch(row, one.astype("float64"), wide, wrt, "vmap", lambda theirs: (("vmap", theirs.each(SUM, wide), mine),))
    fast = found.optimized().graph
    row.nodes["vmap"] = len(fast)
    row.scans = _scans(fast) - _scans(grad(one, SUM, wrt).optimized().graph)
    _in_both_engines(row, "vmap", found, many, together)


def _beside_torch(row: Row, model: Model, feeds: Mapping[str, Array], wrt: Sequence[str], what: str,
                  pairs: Callable[[Mirrored], Sequence[tuple[str, Arrays, Arrays]]]) -> None:
    """Compare with torch.func; an operator without a mirror, or without a rule in PyTorch, is noted."""
    from flowgrad.tools.maintenance.torch_func import Mirrored
    from flowgrad.tools.maintenance.torch_nodes import NoMirror

    try:
        for kind, theirs, mine in pairs(Mirrored(model.graph, feeds, wrt)):
            row.hold(f"{kind} {what}", "torch", _distance(mine, theirs), EXACT)
    except (NoMirror, NotImplementedError, RuntimeError) as reason:
        row.notes.append(f"{what}: not in PyTorch: {type(reason).__name__}: {str(reason)[:150]}")


def _scans(graph: Graph) -> int:
    return sum(1 for _, node in graph.walk() if node.op == "Scan")


def _examples(given: Subject) -> tuple[str, Model, Arrays, list[Arrays]]:
    """Return what one example is, the model of one, what is fed for many, and what is fed to ``given`` for each in float64.

    Where a file fixes the extent of the batch, an example is one whole batch, and there are two.
    """
    feeds = given.feeds
    count = next(a.shape[0] for a in feeds.values() if a.ndim)
    try:
        one = unbatch(given.model)
        if count == 1:
            feeds = {k: np.concatenate([a, _other(a)]) if a.ndim else a for k, a in feeds.items()}
            count = 2
        whole = {k: _wide(a) for k, a in feeds.items()}
        return "example", one, feeds, [{k: a[i:i + 1] if a.ndim else a for k, a in whole.items()} for i in range(count)]
    except InputError:
        many = {k: np.stack([a, _other(a)]) for k, a in feeds.items()}
        return "batch", given.model, many, [{k: _wide(a[i]) for k, a in many.items()} for i in range(2)]


def _other(array: Array) -> Array:
    return np.asarray(0.9 * array, array.dtype) if array.dtype.kind == "f" else np.roll(array, 1, 0)


def _in_both_engines(row: Row, what: str, model: Model, feeds: Mapping[str, Array], exact: Mapping[str, Array]) -> None:
    """Compare float32 in the engine, and exported in onnxruntime, with float64."""
    mine, theirs = _run(model, feeds), model.compile(engine="ort", threads=1).run(dict(feeds))
    largest = max(_largest(a) for a in exact.values())
    for kind, got in (("float32", mine), ("onnxruntime", theirs)):
        for name, array in exact.items():
            if got[name].dtype.kind != "f":
                continue
            off = 0.0 if kind == "float32" else ROUNDING * _largest(mine[name] - array)
            allowed = max(FLOAT32 * _largest(array), off, 1e-6 * largest, 1e-30)
            row.hold(f"{what} {name}", kind, _largest(got[name] - array) / allowed, 1.0)


# ---- numbers --------------------------------------------------------------------------------------------------------------


def _run(model: Model, feeds: Mapping[str, Array]) -> Arrays:
    return dict(model.compile(threads=1).run(dict(feeds)))


def _directions(at: Mapping[str, Array], seed: int) -> Arrays:
    """Return random directions, each of the size of what is moved."""
    rng = np.random.default_rng(seed)
    return {n: np.asarray(rng.standard_normal(a.shape)) * max(1e-2, float(np.sqrt(np.mean(a * a)))) for n, a in at.items()}


def _tangents(along: Mapping[str, Array]) -> Arrays:
    return {f"{n}_tangent": a for n, a in along.items()}


def _narrow(arrays: Mapping[str, Array]) -> Arrays:
    return {k: a.astype(np.float32) for k, a in arrays.items()}


def _largest(array: Array) -> float:
    return float(np.abs(array).max(initial=0.0))


def _distance(got: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Return the largest difference, relative to the largest element of its array, or to 1/1000 of that of all arrays."""
    least = max(1e-3 * max(map(_largest, expected.values())), 1e-300)
    return max(_largest(got[k] - a) / max(_largest(a), least) for k, a in expected.items())


def _dot(left: Mapping[str, Array], right: Mapping[str, Array]) -> tuple[float, float]:
    """Return a scalar product, and the sum of the magnitudes of its terms."""
    products = [left[k] * right[k] for k in left]
    return sum(float(p.sum()) for p in products), sum(float(np.abs(p).sum()) for p in products)


def _apart(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Return how far two scalar products are apart, beside the terms that they sum."""
    return abs(one[0] - other[0]) / max(one[1], other[1], 1e-300)


# ---- times ----------------------------------------------------------------------------------------------------------------


def times(given: Subject, row: Row) -> None:
    """Note what a product with the Hessian costs beside the optimised model, and 64 gradients beside that of their sum."""
    params = [p.name for p in given.model.params if p.included]
    product = hvp(given.model, SUM, params)
    data = {p: np.asarray(product.graph.value(p).producer.data) for p in params}
    tangents = _narrow(_tangents(_directions(data, 3)))
    forward = given.model.compile(threads=1).run
    second = product.compile(threads=1).run
    row.times["hvp/model"] = _ratio(lambda: second({**given.feeds, **tangents}), lambda: forward(given.feeds))
    how, one, _, _ = _examples(given)
    if how != "example":
        return
    batch = {k: np.resize(a, (EXAMPLES, *a.shape[1:])) if a.ndim else a for k, a in given.feeds.items()}
    summed, each = grad(given.model, SUM, params).compile(threads=1).run, vmap(grad(one, SUM, params)).compile(threads=1).run
    row.times[f"{EXAMPLES} gradients/sum"] = _ratio(lambda: each(batch), lambda: summed(batch))


def _ratio(numerator: Callable[[], Any], denominator: Callable[[], Any]) -> float:
    """Return the ratio of the medians of seven calls of each in turn, each of as many as take 10 ms."""
    calls = (numerator, denominator)
    for call in calls:
        call()
    counts = [max(1, round(0.01 / max(_seconds(call, 1), 1e-6))) for call in calls]
    rounds = [[_seconds(call, count) for call, count in zip(calls, counts, strict=True)] for _ in range(7)]
    above, below = (statistics.median(column) for column in zip(*rounds, strict=True))
    return float(above / below)


def _seconds(call: Callable[[], Any], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - start) / count


# ---- the command ----------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    parser = argparse.ArgumentParser(prog="every_derivative", description=(__doc__ or "").split(":", 1)[1].strip(),
                                     epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", type=Path)
    parser.add_argument("--entries", metavar="A,B", help="only these of folders")
    parser.add_argument("--smooth", action="store_true", help="files without their kinks, too (see flowgrad light)")
    parser.add_argument("--torch", action="store_true", help="also beside PyTorch (extra bench)")
    parser.add_argument("--times", action="store_true", help="also what they cost")
    parser.add_argument("--only-times", action="store_true", help="nothing else")
    arguments = parser.parse_args(argv)
    names = arguments.entries.split(",") if arguments.entries else None
    rows = []
    for path in arguments.models:
        for given in subjects(path, names, smooth=arguments.smooth):
            row = Row(given.name) if arguments.only_times else check(given, torch=arguments.torch)
            if arguments.times or arguments.only_times:
                _attempt(row, "times", lambda: times(given, row))  # noqa: B023
            print(row, flush=True)
            rows.append(row)
    for what in dict.fromkeys(k for row in rows for k in row.times):
        found = [row.times[what] for row in rows if what in row.times]
        print(f"median of {what}: {statistics.median(found):.2f} ({len(found)} models)")
    return int(any(row.wrong or row.refused for row in rows))


if __name__ == "__main__":
    sys.exit(main())
