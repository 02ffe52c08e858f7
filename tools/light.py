"""``flowgrad light [FOLDER]``: differentiate the light models that come with onnx, whole and untouched, and check it all.

Their weights are all the same number, so that outputs are uniform and most gradients vanish but for rounding. Each model
is therefore checked twice: as it is, and as a smooth twin with seeded random weights, where gradients say something. Smooth
means Gelu for Relu and AveragePool for MaxPool: over a hundred layers, some of a million kinks lie within float32
rounding, and a gradient that takes another side there differs from another runtime's by as much as it is large.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.errors import EngineError, FlowgradError, InputError, LoadError
from flowgrad.ir.graph import INITIALIZER, Array, Graph, Node
from flowgrad.model import Model, load
from flowgrad.passes.differences import central_difference
from flowgrad.runtime.engines import compile_graph
from flowgrad.tools.notes import print_as_they_come
from flowgrad.transforms.derivatives import vjp

TOLERANCE = {"": 1e-3, "smooth ": 1e-4}
"""Of the largest element of a gradient: float32 over a hundred layers, summed in another order by each runtime."""

ROUNDING = {"": 20, "smooth ": 0}
"""How many times the distance of the float32 gradient from the float64 one a runtime may be off: in the models as they are,
a kink within rounding, or a sum that cancels, is no error. The smooth twins have no such excuse."""

DIFFERENCES = 1e-6
"""Relative distance allowed between a directional derivative and the central difference of the smooth float64 twin."""

STEP = 1e-5
"""Of the central difference."""

LIMITS = {"ir": 5.0, "input_export": 4.0, "params_export": 10.0}
"""Nodes of the gradient graph over nodes of the forward graph: in IR, exported for the input, and for all weights."""

Gradients = dict[str, Array]


@dataclass
class Report:
    """What came of one model: counts, sizes over the forward graph, seconds, what is larger than it should be, and what
    is wrong."""

    model: str
    outputs_ok: bool = False
    gradients: int = 0
    agreed: dict[str, int] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)
    difference: float = float("nan")
    nodes: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    over: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "example: flowgrad light --models squeezenet --engines numpy"
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="where light_*.onnx are (default: those of onnx)")
    parser.add_argument("--models", metavar="A,B", help="only these")
    parser.add_argument("--engines", default="numpy,ort", metavar="A,B", help="numpy (always), ort (the exported model)")


def run(arguments: argparse.Namespace) -> int:
    """Check; exit code 1 if anything is wrong."""
    engines = arguments.engines.split(",")
    for name in engines:
        if name not in ("numpy", "ort"):
            raise InputError(f"no engine {name!r}; engines: numpy, ort", code="name")
    paths = models(arguments.folder, arguments.models.split(",") if arguments.models else None)
    reports = print_as_they_come((check_model(path, engines) for path in paths), line, arguments.json)
    return 1 if any(r.wrong for r in reports) else 0


def models(folder: str | None = None, names: Sequence[str] | None = None) -> list[Path]:
    """Return the light models in a folder (default: that of onnx), those called ``names`` if given.

    Raises InputError if there are none or one is missing.
    """
    place = Path(folder) if folder else _installed()
    found = {p.stem.removeprefix("light_"): p for p in sorted(place.glob("light_*.onnx"))}
    if not found:
        raise InputError(f"no light_*.onnx in {str(place)!r}", code="file")
    for name in names or ():
        if name not in found:
            raise InputError(f"no model {name!r}; models: {', '.join(found)}", code="name")
    return [found[name] for name in names or found]


def _installed() -> Path:
    import onnx

    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def line(report: Report) -> str:
    """Return the printed form of a report."""
    agreed = "  ".join(f"{what} {n}/{report.gradients}" for what, n in report.agreed.items())
    sizes = " ".join(f"{what} {x:.2f}x" for what, x in report.sizes.items())
    seconds = " ".join(f"{what} {s:.3g} s" for what, s in report.seconds.items())
    text = f"{report.model:14} {'wrong' if report.wrong else 'ok':5} {agreed}  {sizes}  {seconds}"
    text += f"  difference {report.difference:.1e}"
    if "ort" in report.seconds:
        text += f"  ort gradient/forward {report.seconds['ort'] / report.seconds['ort_forward']:.1f}"
    remarks = [*report.wrong, *report.over]
    return f"{text}  {'; '.join(remarks)}" if remarks else text


# ---- one model ------------------------------------------------------------------------------------------------------


def check_model(path: Path, engines: Sequence[str] = ("numpy", "ort")) -> Report:
    """Check one model; what it refuses or gets wrong is in ``wrong``. Raises LoadError for a damaged file."""
    report = Report(path.stem.removeprefix("light_"))
    expected = _stored_output(path)
    model = load(path)
    feeds = suite_feeds(model)
    try:
        report.outputs_ok = _is_stored_output(model, feeds, expected)
        if not report.outputs_ok:
            report.wrong.append("the output is not the stored one")
        joint, plain = _differentiated(model, report)
        _sizes(model, joint, report)
        _compare("", joint, plain, feeds, engines, report)
        if "ort" in engines:
            report.seconds["ort_forward"] = _ort_forward(path, feeds)
        joint, plain = _differentiated(smooth_twin(model), None)
        _compare("smooth ", joint, plain, feeds, engines, report)
        report.difference = directional_error(joint, feeds)
        if not report.difference <= DIFFERENCES:
            report.wrong.append(f"the directional derivative is off by {report.difference:.2g}")
    except EngineError:
        raise
    except FlowgradError as error:
        report.wrong.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return report


def _is_stored_output(model: Model, feeds: Mapping[str, Array], expected: Array) -> bool:
    """Return whether the model computes the stored output.

    The logits of these weights are so large (1e10) that their last bit in float32 decides a softmax: the softmax is
    held to the stored output in float64, float32 to float64 by what goes into it.
    """
    exact_logits, exact = _logits_and_output(model.astype("float64"), feeds)
    logits, got = _logits_and_output(model, feeds)
    return (got.shape == expected.shape and np.allclose(exact, expected, rtol=1e-3, atol=1e-7)
            and np.allclose(logits, exact_logits, rtol=1e-4, atol=0))


def _logits_and_output(model: Model, feeds: Mapping[str, Array]) -> tuple[Array, Array]:
    graph = model.graph.copy()
    (entry,) = graph.output_entries
    made = entry.input(0)
    logits = made.producer.input(0) if made.producer.op == "Softmax" else made
    graph.add_output(logits, graph.unique_output_name("logits"))
    dtypes = {v.name: v.type.dtype.numpy for v in graph.inputs}
    output, found = Model(graph)({name: array.astype(dtypes[name]) for name, array in feeds.items()}).values()
    return found, output


def _stored_output(path: Path) -> Array:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    stored = path.with_name(f"{path.stem}_output_0.pb")
    try:
        array: Array = onnx.numpy_helper.to_array(onnx.TensorProto.FromString(stored.read_bytes()))
    except (OSError, DecodeError, ValueError) as error:
        raise LoadError(f"cannot read {str(stored)!r}: {error}", code="file") from error
    return array


def suite_feeds(model: Model) -> dict[str, Array]:
    """Return what the suite of onnx feeds: arange(n) / n, in float32."""
    feeds = {}
    for value in model.graph.inputs:
        shape = value.type.static_shape
        n = int(np.prod(shape))
        feeds[value.name] = (np.arange(n).reshape(shape) / n).astype(np.float32)
    return feeds


def smooth_twin(model: Model) -> Model:
    """Return the model with seeded random weights in place of those made by ConstantOfShape, and without kinks."""
    graph = drawn_twin(model).graph
    for node in graph.nodes():
        if node.op == "Relu":
            graph.set_op(node, "Gelu", {})
        elif node.op == "MaxPool":
            graph.set_op(node, "AveragePool", {**node.attributes, "count_include_pad": 1})
    return model.with_graph(graph)


def drawn_twin(model: Model) -> Model:
    """Return the model with seeded random weights in place of those made by ConstantOfShape."""
    graph = model.graph.copy()
    rng = np.random.default_rng(0)
    for node in graph.nodes():
        if node.op == "ConstantOfShape" and node.output().type.dtype.is_float and node.output().type.is_static:
            _draw(graph, node, rng)
    return model.with_graph(graph)


def _draw(graph: Graph, node: Node, rng: np.random.Generator) -> None:
    value = node.output()
    shape, name = value.type.static_shape, value.name
    users = [(user.op, slot) for (_, slot), user in value.uses.items()]
    if len(shape) > 1:
        # Matrices come last: small ones keep the softmax from saturating, which would leave nothing but cancellation.
        gain = 0.1 if len(shape) == 2 else 1.0
        data = gain * rng.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
    elif any(use in (("BatchNormalization", 1), ("BatchNormalization", 4), ("Unsqueeze", 0)) for use in users):
        data = rng.uniform(0.5, 1.0, shape)
    else:
        data = 0.1 * rng.standard_normal(shape)
    graph.rename(value, graph.unique_name(f"{name}_same"))
    made = graph.add_constant(data.astype(value.type.dtype.numpy), name, INITIALIZER)
    graph.replace_uses(value, made)
    graph.remove(node)


def _differentiated(model: Model, report: Report | None) -> tuple[Model, Model]:
    """Return the vector-Jacobian product for inputs and weights, optimised and plain, noting how long it took."""
    started = time.perf_counter()
    plain = vjp(model, wrt=["inputs", "params"])
    joint = plain.optimized()
    if report is not None:
        report.seconds["vjp+passes"] = time.perf_counter() - started
        report.gradients = sum(1 for role, _, _ in joint.roles if role == "grad")
    return joint, plain


def _sizes(model: Model, joint: Model, report: Report) -> None:
    import onnx

    weights = {n.output().name for n in model.graph.nodes() if n.op == "ConstantOfShape"}
    nodes = {"forward": len(model.graph) - len(weights)}
    nodes["ir"] = sum(1 for n in joint.graph.nodes() if n.output().name not in weights)
    image = vjp(model, wrt="inputs").optimized()
    for key, one in (("input_export", image), ("params_export", joint)):
        proto = one.to_onnx()
        onnx.checker.check_model(proto, full_check=True)
        foreign = {n.domain for n in proto.graph.node} | {o.domain for o in proto.opset_import}
        if foreign != {""} or proto.functions:
            report.wrong.append(f"the exported model is not plain ONNX: domains {sorted(foreign)}")
        nodes[key] = sum(1 for n in proto.graph.node if n.op_type != "Constant" and n.output[0] not in weights)
    report.nodes = nodes
    report.sizes = {key: nodes[key] / nodes["forward"] for key in LIMITS}
    report.over = [f"{key} {x:.2f}x > {LIMITS[key]:g}x" for key, x in report.sizes.items() if x > LIMITS[key]]


def cotangents(joint: Model, seed: int = 1) -> dict[str, Array]:
    """Return seeded random cotangents for a vector-Jacobian product, by input name."""
    rng = np.random.default_rng(seed)
    types = {v.name: v.type for v in joint.graph.inputs}
    names = [name for (role, _, _), name in joint.roles.items() if role == "cotangent"]
    return {name: rng.standard_normal(types[name].static_shape).astype(np.float32) for name in names}


def _compare(kind: str, joint: Model, plain: Model, feeds: Mapping[str, Array], engines: Sequence[str],
             report: Report) -> None:
    """Compare all gradients of both graphs and all engines with those of the float64 graph."""
    given = {**feeds, **cotangents(joint)}
    program = compile_graph(joint.graph)
    mine = _gradients(joint, program.run(given))
    if not kind:
        report.seconds["numpy"] = best_time(lambda: program.run(given))
    exact = exact_gradients(joint, given)
    allowed = allowances(kind, exact, mine)
    found = {"numpy": mine, "unoptimised": _gradients(plain, compile_graph(plain.graph).run(given))}
    if "ort" in engines:
        session = compile_graph(joint.graph, "ort")
        found["ort"] = _gradients(joint, session.run(given))
        if not kind:
            report.seconds["ort"] = best_time(lambda: session.run(given))
    for name, gradients in found.items():
        reference = exact if name == "numpy" else mine
        ratios = {w: _largest(g - reference[w]) / allowed[w] for w, g in gradients.items()}
        bad = [w for w, ratio in ratios.items() if not ratio <= 1]
        report.agreed[kind + name] = len(ratios) - len(bad)
        report.worst[kind + name] = max(ratios.values())
        if bad:
            report.wrong.append(f"{kind}{name}: {len(bad)} gradients differ: {', '.join(bad[:3])}")


def exact_gradients(joint: Model, feeds: Mapping[str, Array]) -> Gradients:
    """Return the gradients in float64 by the NumPy engine, rounded to float32."""
    double = joint.astype("float64")
    results = compile_graph(double.graph).run({k: v.astype(np.float64) for k, v in feeds.items()})
    return {w: g.astype(np.float32) for w, g in _gradients(double, results).items()}


def allowances(kind: str, exact: Gradients, mine: Gradients) -> dict[str, float]:
    """Return, for each gradient, how far another float32 evaluation of it may be away."""
    largest = max(_largest(g) for g in exact.values())
    return {w: max(TOLERANCE[kind] * _largest(g), ROUNDING[kind] * _largest(mine[w] - g), 1e-7 * largest, 1e-30)
            for w, g in exact.items()}


def _largest(array: Array) -> float:
    return float(np.abs(array).max(initial=0.0))


def _gradients(model: Model, results: Mapping[str, Array]) -> Gradients:
    return {wrt: results[name] for (role, _, wrt), name in model.roles.items() if role == "grad"}


def directional_error(joint: Model, feeds: Mapping[str, Array]) -> float:
    """Return the relative distance of a directional derivative, over inputs and weights, from a central difference."""
    double = joint.astype("float64")
    program = compile_graph(double.graph)
    seeds = {k: v.astype(np.float64) for k, v in cotangents(joint).items()}
    at = {k: v.astype(np.float64) for k, v in feeds.items()}
    at.update({v.name: v.producer.data for v in double.graph.parameters if v.producer.data is not None})
    rng = np.random.default_rng(2)
    along = {k: rng.standard_normal(v.shape) * np.sqrt(np.mean(v * v)) for k, v in at.items()}
    results = program.run({**at, **seeds})
    slope = sum(float(np.vdot(g, along[w])) for w, g in _gradients(double, results).items())
    outputs = {y: double.roles["cotangent", y, ""] for role, y, _ in double.roles if role == "cotangent"}

    def paired(point: dict[str, Array]) -> float:
        found = program.run({**point, **seeds})
        return sum(float(np.vdot(found[y], seeds[seed])) for y, seed in outputs.items())

    difference: float = central_difference(paired, at, along, STEP)
    return abs(slope - difference) / max(abs(slope), abs(difference), 1e-300)


# ---- time -----------------------------------------------------------------------------------------------------------


def best_time(call: Callable[[], Any], repeats: int = 5, budget: float = 5.0) -> float:
    """Return the least seconds of a call, after a first one, over ``repeats`` or until ``budget`` seconds are spent."""
    call()
    times: list[float] = []
    until = time.perf_counter() + budget
    while len(times) < repeats and (not times or time.perf_counter() < until):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _ort_forward(path: Path, feeds: Mapping[str, Array]) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {i.name: feeds[i.name] for i in session.get_inputs() if i.name in feeds}
    return best_time(lambda: session.run(None, given))
