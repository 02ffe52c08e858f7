"""The checks of the fuzzer: what has to hold for every graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flowgrad.ir.compare import same_graph
from flowgrad.ir.errors import NotDifferentiableError, SaveError
from flowgrad.ir.evaluate import evaluate, run_values
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.pack import pack, unpack
from flowgrad.ir.text import format_graph, large_constants, parse_graph
from flowgrad.ir.types import Dim
from flowgrad.ir.verify import verify
from flowgrad.model import Model
from flowgrad.passes import available
from flowgrad.passes.check import compare
from flowgrad.passes.differences import extrapolated, moved
from flowgrad.passes.differentiate import Extended, with_adjoint, with_tangent
from flowgrad.passes.manager import DEFAULT_PIPELINE, PassManager
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.transforms.derivatives import jvp, vjp

Feeds = dict[str, Array]
Check = Callable[[Graph, Sequence[Feeds], bool], "str | None"]
"""A check raises AssertionError or any other error for a failure; a text it returns says why it looked at nothing."""

TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "float16": 3e-2}
"""Rounding, relative to the largest element, after which two ways to compute a graph of that type may differ."""

LAYOUT = 2e-3
"""The part of that by which sums in another order may differ; float16 is rounded, and may differ by its last bit."""

ORT_LIMITS = (
    ("NOT_IMPLEMENTED", "no kernel for this type"),
    ("Could not find an implementation", "no kernel for this type"),
    ("The input tensor cannot be reshaped to the requested shape", "an open extent next to 0"),
    ("Product cannot be 0 in combination with -1", "an open extent next to 0"),
    ("is not supported with", "no kernel for this type"),
    ("output dimension is <= 0", "empty results of ConvTranspose"),
    ("Pad reflect requires axis length >= 2", "reflection of one element"),
    ("Missing Input", "empty initializers of LayerNormalization"),
    ("Size of X.shape[axis:] must be at least 1", "layer normalization of nothing"),
    ("Dilation not supported for AutoPadType", "dilation with automatic padding"),
    ("Unexpected mode of 3", "wrapping of a tensor without elements"),
    ("Pad reflect: pre-pad", "reflection beyond the axis, which the standard library allows"),
    ("Pad reflect: post-pad", "reflection beyond the axis, which the standard library allows"),
    ("does not support double yet", "no kernel for this type"),
    ("updates tensor should have shape equal to", "updates of a tensor without elements"),
    ("Indices vs updates dimensions differs", "expansion of one element to none"),
    ("size_ % 2 == 1 was false", "an even size of LRN"),
    ("X_shape.NumDimensions() == 4 was false", "LRN of other than two axes"),
    ("Batchwise recurrent operations", "recurrent layers with layout 1"),
    ("'Cubic' mode only supports", "cubic interpolation of other than two axes"),
    ("is invalid", "type not in its table"),
)
"""What onnxruntime refuses although the standard allows it: part of the message, and the reason."""

ORT_FLOAT32 = frozenset({"Gelu", "GroupNormalization", "HardSwish", "Shrink"})
"""Ops that onnxruntime computes in float32 for float64 too."""

CHECKER_LIMITS = (("Product cannot be 0 in combination with -1", "an open extent next to 0"),)
"""What onnx.checker refuses although the values are well defined."""

STEPS = frozenset({"Floor", "Ceil", "Round", "Sign", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "ArgMax",
                   "ArgMin", "TopK", "Hardmax", "NonZero", "Mod", "IsNaN", "IsInf", "ThresholdedRelu", "Shrink"})
"""Ops whose result may jump where two engines round differently."""


# ---- values -----------------------------------------------------------------------------------------------------------


def check_types(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> str | None:
    """The graph is valid, and every value has the dtype and extents that it declares."""
    verify(graph)
    for given in feeds:
        env: dict[str, int] = {}
        for value in graph.inputs:
            for dim, extent in zip(value.type.shape or (), given[value.name].shape, strict=True):
                if isinstance(dim, Dim) and repr(dim) in dim.names():
                    env[repr(dim)] = extent
        values = [v for n in graph.nodes() for v in n.results]
        arrays = run_values(graph, {v: given[v.name] for v in graph.inputs}, values, np.random.default_rng(0))
        for value, array in zip(values, arrays, strict=True):
            _holds(value, array, env)
    return None


def _holds(value: Value, array: Array, env: Mapping[str, int]) -> None:
    assert array.dtype == value.type.dtype.numpy, f"{value!r} is {array.dtype}"
    if value.type.shape is None:
        return
    assert len(value.type.shape) == array.ndim, f"{value!r} has shape {array.shape}"
    for dim, extent in zip(value.type.shape, array.shape, strict=True):
        known = dim if isinstance(dim, int) else dim.evaluate(env) if dim.names() <= set(env) else extent
        assert known == extent, f"{value!r} has shape {array.shape}, with {dict(env)}"
    if value.symbolic is not None:
        told = [d if isinstance(d, int) else d.evaluate(env) if d.names() <= set(env) else None for d in value.symbolic.flat]
        assert all(t in (None, n) for t, n in zip(told, array.flat, strict=True)), f"{value!r} is {array}, not {value.symbolic}"


def check_program(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> str | None:
    """The program gives the evaluator's values, whatever ran before; it keeps its inputs and shares no outputs.

    Bits may differ by rounding alone, since sums follow the memory layout; they are the same for every run and number
    of threads.
    """
    expected = [evaluate(graph, f) for f in feeds]
    first: list[Feeds] = [{}, {}]
    for threads in (1, 2):
        program = NumpyProgram(graph, threads=threads)
        for world in (0, 1, 0, 1, 1):
            given = {k: a.copy() for k, a in feeds[world].items()}
            got = program.run(given)
            for name, array in feeds[world].items():
                assert _same(given[name], array), f"input {name} was changed"
            _all_close(got, expected[world], f"threads={threads}: ", LAYOUT)
            first[world] = first[world] or {k: a.copy() for k, a in got.items()}
            _all_same(got, first[world], f"threads={threads}, run again: ")
            _unshared(got, given)
            for array in got.values():
                if array.flags.writeable and array.dtype != object:
                    array.fill(1)
    return None


def _unshared(got: Feeds, given: Feeds) -> None:
    arrays = [*got.items(), *given.items()]
    for i, (name, array) in enumerate(got.items()):
        for other, second in arrays[i + 1:]:
            assert not np.may_share_memory(array, second), f"{name} shares memory with {other}"


def _same(a: Array, b: Array) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind == "f":
        a, b = np.where(np.isnan(a), a.dtype.type(7), a), np.where(np.isnan(b), b.dtype.type(7), b)
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def _all_same(got: Feeds, expected: Feeds, what: str = "") -> None:
    assert list(got) == list(expected), f"{what}outputs {list(got)}, not {list(expected)}"
    for name, array in expected.items():
        mine = got[name]
        assert mine.dtype == array.dtype and mine.shape == array.shape, (
            f"{what}{name} is {mine.dtype}{mine.shape}, not {array.dtype}{array.shape}")
        assert _same(mine, array), f"{what}{name} is\n{mine}\nnot\n{array}"


def _all_close(got: Feeds, expected: Feeds, what: str, slack: float = 1.0, coarsest: float = 0.0) -> None:
    for name, array in expected.items():
        mine = got[name]
        assert mine.dtype == array.dtype and mine.shape == array.shape, (
            f"{what}{name} is {mine.dtype}{mine.shape}, not {array.dtype}{array.shape}")
        if array.dtype.kind != "f":
            assert _same(mine, array), f"{what}{name} is\n{mine}\nnot\n{array}"
            continue
        a, b = mine.astype(float), array.astype(float)
        assert np.array_equal(np.isnan(a), np.isnan(b)), f"{what}{name} is\n{mine}\nnot\n{array}"
        infinite = np.isinf(a) | np.isinf(b)
        assert np.array_equal(a[infinite], b[infinite]), f"{what}{name} is\n{mine}\nnot\n{array}"
        chosen = np.isfinite(a)
        if chosen.any():
            a, b = a[chosen], b[chosen]
            relative = slack * (coarsest or TOLERANCE[array.dtype.name])
            bound = max(relative, 2e-3 if array.dtype == np.float16 else 0.0) * max(1.0, float(np.abs(b).max()))
            assert np.abs(a - b).max() <= bound, f"{what}{name} is\n{mine}\nnot\n{array}"


# ---- passes -----------------------------------------------------------------------------------------------------------


def check_passes(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> str | None:
    """Every pass keeps its promise, leaves a valid graph and finds nothing to do the second time."""
    names = [n for n, p in available().items() if p.kind != "extends"]
    for name in names:
        _keeps(graph, feeds, name)
    _keeps_in_turn(graph, feeds, smooth)
    return None


def check_passes_of_gradient(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> str | None:
    """The passes on the graph with its adjoint."""
    joint, more = _with_adjoint(graph, feeds)
    if joint is None:
        return "no gradient"
    verify(joint.graph)
    names = [n for n, p in available().items() if p.kind != "extends"]
    for name in names:
        if smooth or name != "expand":  # the plain form of a product's derivative divides, by infinity too
            _keeps(joint.graph, more, name)
    _keeps_in_turn(joint.graph, more, smooth)
    return None


def _keeps(graph: Graph, feeds: Sequence[Feeds], pipeline: str) -> Graph:
    result = PassManager(pipeline, verify=True).run(graph)
    if not result.changed:
        return graph
    kinds = {s.stage.pass_.kind for s in result.steps if s.changed}
    promise = "repairs" if "repairs" in kinds else "rounding" if "rounding" in kinds else "exact"
    for given in feeds:
        verdict = compare(graph, result.model, promise, given, derivatives=False)  # type: ignore[arg-type]
        if verdict.difference and promise == "exact":  # a folded transpose has another layout, which sums follow
            _all_close(evaluate(result.model, given), evaluate(graph, given), f"{pipeline}: ", LAYOUT)
        else:
            assert not verdict.difference, f"{pipeline}: {verdict.difference}\n{format_graph(result.model)}"
    again = PassManager(pipeline, verify=True).run(result.model)
    fired = [(s.name, dict(s.applied)) for s in again.steps if s.applied]
    assert "," in pipeline or not fired, f"{pipeline} is not done after one run: {fired}\n{format_graph(result.model)}"
    made: Graph = result.model
    return made


def _keeps_in_turn(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> None:
    for stage in PassManager(DEFAULT_PIPELINE).stages:
        graph = _keeps(graph, feeds, str(stage))
    if not smooth:  # whether a product skips 0 * inf depends on the layout that BLAS is given
        return
    expected = [evaluate(graph, f) for f in feeds]
    program = NumpyProgram(graph, threads=2)
    for given, outputs in zip(feeds, expected, strict=True):
        _all_close(program.run(given), outputs, "optimised, as a program: ", LAYOUT)


# ---- derivatives --------------------------------------------------------------------------------------------------------


def _with_adjoint(graph: Graph, feeds: Sequence[Feeds]) -> tuple[Extended | None, list[Feeds]]:
    """Return the graph with cotangents and gradients, and inputs for it; None if there is nothing to differentiate."""
    try:
        joint = with_adjoint(graph)
    except NotDifferentiableError:
        return None, []
    if not joint.inputs or not any(v.type.dtype.is_float for v in graph.inputs):
        return None, []
    return joint, [{**given, **joint.drawn(evaluate(graph, given), np.random.default_rng(5))} for given in feeds]


def _only_float64(graph: Graph) -> bool:
    """Return whether differences are meaningful: all floats are float64, and nothing jumps through integers."""
    values = [v for n in graph.nodes() for v in (*n.operands, *n.results)]
    return all(v.type.dtype.name == "float64" or not v.type.dtype.is_float for v in (*graph.inputs, *values))


def _measurable(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> tuple[Extended, list[Feeds]] | str:
    """Return the graph with its adjoint, and inputs for it, or why differences say nothing about it."""
    if not smooth or not _only_float64(graph):
        return "not float64"
    if any(n.op == "StopGradient" for n in graph.nodes()):
        return "a gradient is stopped"
    joint, more = _with_adjoint(graph, feeds)
    return "no gradient" if joint is None else (joint, more)


def check_derivatives(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> str | None:
    """Adjoint and tangent agree with central differences in float64; so do second derivatives."""
    found = _measurable(graph, feeds, smooth)
    if isinstance(found, str):
        return found
    joint, more = found
    verify(joint.graph)
    reasons = [_adjoint_at(graph, joint, g, m) or _tangent_at(joint.graph, m) for g, m in zip(feeds, more, strict=True)]
    return next((r for r in reasons if r), None)


def check_second(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> str | None:
    """The adjoint of the adjoint agrees with differences of the gradient."""
    found = _measurable(graph, feeds, smooth)
    if isinstance(found, str):
        return found
    joint, more = found
    first = joint.alone() if joint.outputs else joint.graph
    twice, most = _with_adjoint(first, more)
    if twice is None:
        return "no second gradient"
    verify(twice.graph)
    reasons = [_adjoint_at(first, twice, g, m) for g, m in zip(more, most, strict=True)]
    return next((r for r in reasons if r), None)


def check_transforms(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> str | None:
    """The vjp of a model, compiled, gives the gradients; in float64 everything is the same up to rounding."""
    if not smooth or not all(any(v.type.dtype.is_float for v in values) for values in (graph.inputs, graph.outputs)):
        return "no gradient"
    model = Model(graph)
    try:
        pulled = vjp(model, zero="allow")
        pushed = jvp(model)
    except NotDifferentiableError:
        return "no gradient"
    coarse = _coarsest(graph)
    rng = np.random.default_rng(3)
    for given in feeds:
        outputs = evaluate(graph, given)
        cotangents = {name: outputs[y] for (role, y, _), name in pulled.roles.items() if role == "cotangent"}
        plain = evaluate(pulled.graph, {**given, **cotangents})
        got = pulled.compile(threads=1).run({**given, **cotangents})
        if not all(np.abs(a).max(initial=0.0) < 1e4 for a in plain.values() if a.dtype.kind == "f"):
            return "large gradients"
        _all_close(got, plain, "vjp, compiled: ", 1.0, coarse)
        tangents = {name: np.asarray(rng.standard_normal(given[x].shape)).astype(given[x].dtype)
                    for (role, _, x), name in pushed.roles.items() if role == "tangent" and x}
        forward = evaluate(pushed.graph, {**given, **tangents})
        if not all(np.isfinite(a).all() for a in forward.values() if a.dtype.kind == "f"):
            return "large tangents"
        _dual(pulled, pushed, plain, forward, outputs, tangents, coarse)
    return None


def _dual(pulled: Model, pushed: Model, plain: Feeds, forward: Feeds, outputs: Feeds, tangents: Feeds, coarse: float) -> None:
    """Check <y, y_dot> = <x_bar, x_dot> with the outputs themselves as cotangents."""
    left = [outputs[y].astype(float) * forward[name].astype(float)
            for (role, y, x), name in pushed.roles.items() if role == "tangent" and y]
    right = [plain[pulled.roles[key]].astype(float) * tangents[pushed.roles["tangent", "", key[2]]].astype(float)
             for key in pulled.roles if key[0] == "grad"]
    a, b = (sum(float(p.sum()) for p in side) for side in (left, right))
    scale = sum(float(np.abs(p).sum()) for p in (*left, *right))
    assert abs(a - b) <= 10 * coarse * max(scale, 1.0), f"<y, y_dot> = {a}, <x_bar, x_dot> = {b}"


def _adjoint_at(graph: Graph, joint: Extended, given: Feeds, more: Feeds) -> str | None:
    cotangents = {of: more[name] for of, name in joint.inputs.items()}
    results = evaluate(joint.graph, more)
    _all_close({n: results[n] for n in cotangents}, {n: a for n, a in evaluate(graph, given).items() if n in cotangents},
              "with the adjoint: ")
    rng = np.random.default_rng(9)
    for _ in range(2):
        direction = {k: np.asarray(rng.standard_normal(a.shape)) for k, a in given.items() if a.dtype == np.float64}

        def pairing(at: Feeds) -> Array:
            outputs = evaluate(graph, at)
            return np.asarray(sum(np.sum(outputs[n] * c) for n, c in cotangents.items()))

        measured = _differences(pairing, given, direction)
        if isinstance(measured, str):
            return measured
        expected, error = measured
        parts = [results[joint.outputs[n]] * d for n, d in direction.items() if n in joint.outputs]
        got, scale = sum(float(p.sum()) for p in parts), sum(float(np.abs(p).sum()) for p in parts)
        bound = 1e-6 * max(scale, abs(float(expected)), 1.0) + 20 * float(error)
        assert abs(got - float(expected)) <= bound, f"adjoint {got}, differences {float(expected)} (bound {bound:.2e})"
    return None


def _tangent_at(joint: Graph, more: Feeds) -> str | None:
    """Compare the tangents of all outputs, the gradients among them, with differences."""
    try:
        forward = with_tangent(joint)
    except NotDifferentiableError:
        return "no tangent"
    verify(forward.graph)
    rng = np.random.default_rng(11)
    direction = {x: np.asarray(rng.standard_normal(more[x].shape)) for x in forward.inputs}
    got = evaluate(forward.graph, {**more, **{forward.inputs[x]: d for x, d in direction.items()}})
    for entry in [e for e in joint.output_entries if e.input(0).type.dtype.is_float]:
        measured = _differences(lambda at, e=entry: evaluate(joint, at)[e.name], more, direction)  # type: ignore[misc]
        if isinstance(measured, str):
            return measured
        expected, error = measured
        mine = got.get(forward.outputs.get(entry.name, ""), np.zeros_like(expected))
        assert mine.shape == expected.shape, f"tangent of {entry.name}: {mine.shape}, not {expected.shape}"
        scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
        assert np.all(np.abs(mine - expected) <= 1e-5 * scale + 20 * error), (
            f"tangent of {entry.name} is\n{mine}\nnot\n{expected}")
    return None


def _differences(function: Callable[[Feeds], Array], at: Feeds, direction: Feeds) -> tuple[Array, Array] | str:
    """Return the Richardson central difference and its error, or why there is none."""
    h = 1e-3
    center = function(moved(at, direction, 0.0))
    ends = {s: function(moved(at, direction, s * h)) for s in (1, -1, 0.5, -0.5, 0.25, -0.25)}
    if any(e.shape != center.shape for e in ends.values()):
        return "the shape depends on the point"
    if not all(np.isfinite(e).all() for e in (center, *ends.values())):
        return "not finite"
    best, distance = extrapolated(*((ends[s] - ends[-s]) / (2 * s * h) for s in (1, 0.5, 0.25)))
    magnitude = np.maximum(1.0, np.maximum(np.abs(best), np.abs(center)))
    bend1, bend2 = (np.abs(ends[s] + ends[-s] - 2 * center) / (s * h) for s in (1, 0.25))
    if np.any((bend2 > 0.5 * bend1) & (bend2 > 1e-7 * magnitude)):
        return "near a kink"
    error = distance + 1e-12 * magnitude / h
    return (best, error) if np.all(error <= 1e-5 * magnitude) else "the differences do not converge"


# ---- files --------------------------------------------------------------------------------------------------------------


def check_forms(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> str | None:
    """Text and msgpack bring the same graph back; the gradient graph as well."""
    joint, _ = _with_adjoint(graph, feeds)
    for each in [graph] if joint is None else [graph, joint.graph]:
        data = pack(each)
        back = unpack(data)
        verify(back)
        assert (difference := same_graph(each, back)) is None, difference
        assert pack(back) == data, "msgpack differs the second time"
        text = format_graph(each)
        parsed = parse_graph(text, large_constants(each))
        assert (difference := same_graph(each, parsed)) is None, difference
        assert format_graph(parsed) == text, "the text differs the second time"
    return None


def check_onnx(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> str | None:
    """The ONNX export passes the checker, means the same read back, and runs alike on onnxruntime."""
    return _exported(graph, feeds)


def check_onnx_of_gradient(graph: Graph, feeds: Sequence[Feeds], smooth: bool) -> str | None:
    """The same for the graph with its adjoint."""
    joint, more = _with_adjoint(graph, feeds)
    if not smooth:  # plain forms divide and select, by what is not finite too
        return "not finite"
    return "no gradient" if joint is None else _exported(joint.graph, more)


def _coarsest(graph: Graph) -> float:
    """Return the tolerance of the coarsest float type that a graph computes in."""
    values = [v for n in graph.nodes() for v in (*n.operands, *n.results)]
    if any(n.op in ORT_FLOAT32 for n in graph.nodes()):
        return max(TOLERANCE["float32"], *(TOLERANCE[v.type.dtype.name] for v in values if v.type.dtype.is_float))
    return max((TOLERANCE[v.type.dtype.name] for v in values if v.type.dtype.is_float), default=TOLERANCE["float64"])


def _exported(graph: Graph, feeds: Sequence[Feeds]) -> str | None:
    import onnx
    import onnxruntime

    from flowgrad.exchange.reader import read_onnx
    from flowgrad.exchange.writer import write_onnx

    try:
        proto = write_onnx(graph)
    except SaveError as error:
        reason = next((why for part, why in CHECKER_LIMITS if part in str(error)), None)
        if reason is None:
            raise
        return f"onnx.checker: {reason}"
    onnx.checker.check_model(proto, full_check=True)
    expected = [evaluate(graph, f) for f in feeds]
    back = read_onnx(proto)
    verify(back)
    for given, outputs in zip(feeds, expected, strict=True):
        _all_close(evaluate(back, given), outputs, "read back: ", slack=3.0)
    if any(n.op in ("Loop", "Scan") for n in graph.nodes()) and meets_nothing(graph, feeds):
        return "onnxruntime: other extents where a loop collects nothing"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        got = [session.run(None, f) for f in feeds]
    except Exception as error:
        reason = next((why for part, why in ORT_LIMITS if part in str(error)), None)
        if reason is None:
            raise AssertionError(f"onnxruntime: {error}") from error
        return f"onnxruntime: {reason}"
    steps = any(n.op in STEPS for n in graph.nodes()) and not _only_float64(graph)
    if steps:
        return "onnxruntime: a step may fall on either side"
    for outputs, arrays in zip(expected, got, strict=True):
        if all(np.abs(a).max(initial=0.0) < 1e15 for a in outputs.values() if a.dtype.kind == "f"):
            _all_close(dict(zip(outputs, arrays, strict=True)), outputs, "onnxruntime: ", 3.0, _coarsest(graph))
    return None


def meets_nothing(graph: Graph, feeds: Sequence[Feeds]) -> bool:
    """Return whether a value of the graph has no elements."""
    values = list(dict.fromkeys(v for n in graph.nodes() for v in (*n.operands, *n.results)))
    return any(not a.size for given in feeds
               for a in run_values(graph, {v: given[v.name] for v in graph.inputs}, values, np.random.default_rng(0)))


CHECKS: dict[str, tuple[Check, float]] = {
    "types": (check_types, 1.0),
    "program": (check_program, 1.0),
    "passes": (check_passes, 1.0),
    "derivatives": (check_derivatives, 1.0),
    "forms": (check_forms, 1.0),
    "onnx": (check_onnx, 1.0),
    "transforms": (check_transforms, 0.3),
    "second": (check_second, 0.2),
    "gradient passes": (check_passes_of_gradient, 0.4),
    "gradient onnx": (check_onnx_of_gradient, 0.4),
}
"""The checks, and the share of graphs that each looks at."""
