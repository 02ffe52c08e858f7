"""``python -m flowgrad.tools.maintenance.against_torch``: random graphs beside PyTorch: values, first and second derivatives.

Each operator is written a second time, by the standard, in PyTorch (``torch_nodes``, ``torch_shapes``, ``torch_layers``), and
each graph is compared with it, run here and, exported, in onnxruntime. What differs is shrunk and printed with its seed.
"""

from __future__ import annotations

import argparse
import collections
import functools
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowgrad.ir.errors import NotDifferentiableError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import PARAMETER, Array, Graph, Node, Value
from flowgrad.ir.ops.convolution.automatic_pads import is_misread
from flowgrad.ir.ops.resize import operators as resize
from flowgrad.ir.types import FLOAT32, FLOAT64
from flowgrad.model import Model
from flowgrad.tools.maintenance import random_graphs as _random_graphs  # noqa: F401  declares ways to add nodes
from flowgrad.tools.maintenance.fuzz import Failure, shrink
from flowgrad.tools.maintenance.fuzz_checks import ORT_FLOAT32, ORT_LIMITS, Feeds, meets_nothing
from flowgrad.tools.maintenance.graph_maker import KINDS, Maker, Rejected, Sample
from flowgrad.tools.maintenance.random_functions import FUNCTIONS
from flowgrad.tools.maintenance.random_layers import LAYERS
from flowgrad.transforms.derivatives import jvp, vjp

NODES = 8
OWN = frozenset({"StopGradient"})
"""What random graphs have beside operators of the standard."""

BASE = {"float64": 1e-9, "float32": 2e-5}
"""Errors, relative to the largest element (or 1), that need no explanation. A larger one has to be below what rounding does."""

AMPLIFIED = 32
"""How often the error of an array may exceed the largest that eight draws of rounding errors in every operation gave."""

SHARE = 3
"""Of so many graphs, one has the programs of its tangents and second derivatives run, the others their plain graphs; and
another one has its second derivatives taken forwards over reverse as well."""

TINY = {"float64": 1e-7, "float32": 1e-3}
"""Distances to a step or kink below which two engines may be on different sides."""


@dataclass(frozen=True)
class Disputed:
    """A form of an operator on which an engine stands alone: the checks that leave it out, and who is right by what source."""

    op: str
    checks: tuple[str, ...]
    holds: Callable[[Node], bool]
    reason: str


EXPORTED = ("onnx", "gradient onnx")


def _by_fractions(node: Node) -> bool:
    """Corners aligned by fractions of extents that export cannot write out, for want of them."""
    scales = node.optional(2)
    return (node.attributes.get("coordinate_transformation_mode") == "align_corners" and scales is not None
            and scales.constant is not None and bool((scales.constant % 1).any()) and not resize.is_misread(node))


def _dilated(node: Node) -> bool:
    """Automatic padding that export cannot write out, for want of extents."""
    dilated = max(node.attributes.get("dilations", ()), default=1) > 1
    return node.attributes.get("auto_pad", "").startswith("SAME") and dilated and not is_misread(node)


DISPUTED = (
    *(Disputed(op, EXPORTED, _dilated, "onnxruntime forgets dilations in automatic padding; the standard's formula has them")
      for op in ("MaxPool", "AveragePool", "LpPool")),
    Disputed("Resize", EXPORTED, _by_fractions, "onnxruntime divides align_corners by the whole extent less 1; the standard's "
             "test resize_downsample_scales_linear_align_corners, as here, by scale * extent - 1"),
)
"""What is settled by a third source."""


# ---- graphs ---------------------------------------------------------------------------------------------------------------


class SmallMaker(Maker):
    """Makes small graphs of finite numbers in float64 and float32, with layers."""

    kinds = [(f, w) for f, w in KINDS if f.__name__ != "cast"] + LAYERS + FUNCTIONS

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.smooth = True
        self.dtype = FLOAT64 if self.chance(0.6) else FLOAT32

    def emit(self, op: str, inputs: Sequence[Any], *rest: Any, **more: Any) -> Value:
        """Add a node as the base class does; Rejected where a narrow float would come out."""
        y = super().emit(op, inputs, *rest, **more)
        if y.type.dtype.is_narrow:
            raise Rejected("narrow")
        return y


def small_graph(seed: int) -> Sample:
    """Return the random graph of a seed."""
    return SmallMaker(seed).make(NODES)


# ---- what was seen -----------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a run saw."""

    graphs: int = 0
    ops: collections.Counter[str] = field(default_factory=collections.Counter)
    checked: collections.Counter[str] = field(default_factory=collections.Counter)
    skipped: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[Failure] = field(default_factory=list)


@dataclass
class Subject:
    """A graph with its inputs, and what its derivatives are taken with respect to and along."""

    graph: Graph
    feeds: Sequence[Feeds]
    seen: Seen
    wrt: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    ops: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        held = [v for v in self.graph.constants if v.producer.role == PARAMETER]
        self.wrt = [v.name for v in (*self.graph.inputs, *held) if v.type.dtype.is_float]

    @property
    def single(self) -> bool:
        """True if any value is a float32."""
        values = [*self.graph.inputs, *(v for n in self.graph.nodes() for v in (*n.operands, *n.results))]
        return any(v.type.dtype == FLOAT32 for v in values)

    def skip(self, why: str) -> None:
        """Count what was left out."""
        self.seen.skipped[why] += 1

    def fail(self, check: str, message: str) -> None:
        """Keep the first failure of a check."""
        self.failed.setdefault(check, message)


def examine(graph: Graph, feeds: Sequence[Feeds], seen: Seen) -> dict[str, str]:
    """Compare a graph with PyTorch in every way; returns messages by check."""
    from flowgrad.tools.maintenance.torch_nodes import NoMirror, Run
    from flowgrad.tools.maintenance.torch_numbers import Theirs

    subject = Subject(graph, feeds, seen)
    engines = Engines(subject)
    for world, given in enumerate(feeds):
        if world and all(given[name].shape == array.shape for name, array in feeds[0].items()):
            continue  # other numbers of the same extents say little more
        run = Run(TINY["float32" if subject.single else "float64"])
        try:
            theirs = Theirs(graph, given, subject.wrt, run)
        except NoMirror as reason:
            subject.skip(f"no mirror: {reason}")
            break
        subject.ops |= run.ops
        if run.steps:
            subject.skip(f"near a step: {', '.join(run.steps)}")
            continue
        comparison = Comparison(subject, given, theirs.values(), None)
        values = engines.values(given)
        comparison.check("value", {("value", k): a for k, a in values.items()})
        exported = engines.exported("onnx", given)
        if exported is not None:
            comparison.check("onnx", {("value", k): a for k, a in exported.items()}, exported=True)
        if run.kinks:
            subject.skip(f"near a kink: {', '.join(run.kinks)}")
        elif engines.differentiable:
            engines.derivatives(theirs, given, values, np.random.default_rng(world))
    seen.ops.update(op for op in subject.ops if op not in OWN)
    return subject.failed


@dataclass
class Comparison:
    """Numbers of PyTorch for one set of inputs, and how far off others may be."""

    subject: Subject
    given: Feeds
    expected: dict[tuple[str, str], Array]
    seeds: Any
    moved: dict[bool, dict[tuple[str, str], Array]] = field(default_factory=dict)

    def check(self, name: str, got: dict[tuple[str, str], Array], exported: bool = False) -> None:
        """Compare and count; a difference is kept as a failure of the check ``name``."""
        for key, mine in got.items():
            theirs = self.expected[key]
            what = " ".join(key)
            if mine.shape != theirs.shape:
                self.subject.fail(name, f"{what} has shape {mine.shape}, not {theirs.shape}")
            elif mine.dtype.kind != "f":
                if not np.array_equal(mine, theirs):
                    self.subject.fail(name, f"{what} is\n{mine}\nnot\n{theirs}")
            elif not np.isfinite(theirs).all():
                self.subject.skip("not finite in PyTorch")
            elif not self._close(key, mine.astype(np.float64), theirs, mine.dtype.name, exported):
                self.subject.fail(name, f"{what} is\n{mine}\nnot\n{theirs}")
        self.subject.seen.checked[name] += 1

    def _close(self, key: tuple[str, str], mine: Array, theirs: Array, dtype: str, exported: bool) -> bool:
        coarse = exported and any(n.op in ORT_FLOAT32 for n in self.subject.graph.nodes())
        difference = np.abs(mine - theirs)
        scale = max(1.0, float(np.abs(theirs).max(initial=0.0)))
        single = self.subject.single or coarse
        if difference.max(initial=0.0) <= BASE["float32" if single else dtype] * scale:
            return True
        from flowgrad.tools.maintenance.torch_numbers import spread

        if coarse not in self.moved:
            unit = float(np.finfo(np.float32 if single else np.float64).eps)
            self.moved[coarse] = spread(self.subject.graph, self.given, self.subject.wrt, self.seeds, self.expected, unit)
        return bool(difference.max() <= AMPLIFIED * float(self.moved[coarse][key].max()))


class Engines:
    """The transforms of a graph, made once, for all sets of inputs."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.model = Model(subject.graph).optimized()
        self.program = self.model.compile(threads=1)
        self.sessions: dict[str, Any] = {}
        self.programs: dict[Model, Callable[[Feeds], Feeds]] = {}
        self.compiled = len(subject.graph) % SHARE == 0
        self.forward = len(subject.graph) % SHARE == 1
        self.differentiable = bool(subject.wrt) and any(v.type.dtype.is_float for v in subject.graph.outputs)
        if not self.differentiable:
            return
        try:
            model = Model(subject.graph)
            self.pulled = vjp(model, wrt=subject.wrt, zero="allow")
            self.pushed = jvp(model, wrt=subject.wrt, zero="allow")
            self.gradients = {x: name for (role, _, x), name in self.pulled.roles.items() if role == "grad"}
            self.cotangents = {y: name for (role, y, _), name in self.pulled.roles.items() if role == "cotangent"}
            ends = [*subject.wrt, *self.cotangents.values()]
            self.twice = vjp(self.pulled, of=list(self.gradients.values()), wrt=ends, zero="allow")
            self.turned = jvp(self.pulled, list(self.gradients.values()), subject.wrt, zero="allow") if self.forward else None
        except NotDifferentiableError as error:
            subject.skip(f"refused: {str(error)[:60]}")
            self.differentiable = False
            return
        self.exportable = self.pulled.optimized()
        self.program_of_vjp = self.exportable.compile(threads=1)

    def run(self, model: Model, given: Feeds) -> Feeds:
        """Return the outputs of a derivative: of its program for some graphs, of its plain graph for the others."""
        if model not in self.programs:
            self.programs[model] = model.compile(threads=1).run if self.compiled else functools.partial(evaluate, model.graph)
        return dict(self.programs[model](given))

    def values(self, given: Feeds) -> Feeds:
        """Return the outputs of the graph."""
        return dict(self.program.run(given))

    def derivatives(self, theirs: Any, given: Feeds, outputs: Feeds, rng: np.random.Generator) -> None:
        """Compare vjp, jvp, second derivatives and the exported vjp."""
        from flowgrad.tools.maintenance.torch_numbers import Seeds

        def drawn(like: Array) -> Array:
            return np.asarray(rng.standard_normal(like.shape)).astype(like.dtype)

        graph, wrt = self.subject.graph, self.subject.wrt
        at = {x: given[x] if x in given else graph.value(x).producer.data for x in wrt}
        seeds = Seeds({y: drawn(outputs[y]) for y in self.cotangents}, {x: drawn(a) for x, a in at.items() if a is not None},
                      {x: drawn(a) for x, a in at.items() if a is not None})
        expected = theirs.derivatives(seeds)
        comparison = Comparison(self.subject, given, expected, seeds)
        more = given | {self.cotangents[y]: a for y, a in seeds.cotangents.items()}
        got = dict(self.program_of_vjp.run(more))
        comparison.check("vjp", {("vjp", x): got[name] for x, name in self.gradients.items()})
        roles = self.pushed.roles
        got = self.run(self.pushed, given | {roles["tangent", "", x]: a for x, a in seeds.tangents.items()})
        comparison.check("jvp", {("jvp", y): got[name] for (role, y, _), name in roles.items() if role == "tangent" and y})
        roles = self.twice.roles
        got = self.run(self.twice, more | {roles["cotangent", self.gradients[x], ""]: a for x, a in seeds.seconds.items()})
        back = {name: y for y, name in self.cotangents.items()}
        of = ",".join(self.gradients.values())
        comparison.check("second", {("second", back.get(x, x)): got[name] for (role, o, x), name in roles.items()
                                    if role == "grad" and o == of})
        if self.turned is not None:  # second derivatives are symmetric
            roles = self.turned.roles
            got = self.run(self.turned, more | {roles["tangent", "", x]: a for x, a in seeds.seconds.items()})
            comparison.check("forward over reverse", {("second", x): got[roles["tangent", name, ""]]
                                                      for x, name in self.gradients.items()})
        exported = self.exported("gradient onnx", more)
        if exported is not None:
            comparison.check("gradient onnx", {("vjp", x): exported[name] for x, name in self.gradients.items()}, exported=True)

    def exported(self, name: str, given: Feeds) -> Feeds | None:
        """Return the outputs of the model or of its vjp in onnxruntime; None where it says that it cannot run that."""
        import onnxruntime

        model = self.model if name == "onnx" else self.exportable
        if name in self.sessions and self.sessions[name] is None:
            return None
        nodes = self.subject.graph.nodes()
        dispute = next((d for n in nodes for d in DISPUTED if d.op == n.op and name in d.checks and d.holds(n)), None)
        if dispute is not None:
            self.subject.skip(f"disputed: {dispute.op}: {dispute.reason}")
            return None
        ending = any(n.op in ("RNN", "GRU", "LSTM", "Einsum") for n in nodes)
        if ending and meets_nothing(self.subject.graph, self.subject.feeds):
            self.subject.skip("onnxruntime: recurrent layers or Einsum of nothing, which end the process")
            return None
        try:
            if name not in self.sessions:
                data = model.to_onnx(passes="").SerializeToString()
                options = onnxruntime.SessionOptions()
                options.log_severity_level = 4
                options.intra_op_num_threads = options.inter_op_num_threads = 1
                self.sessions[name] = None
                self.sessions[name] = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            session = self.sessions[name]
            wanted = {i.name for i in session.get_inputs()}
            names = [o.name for o in session.get_outputs()]
            return dict(zip(names, session.run(None, {k: a for k, a in given.items() if k in wanted}), strict=True))
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            reason = next((why for part, why in ORT_LIMITS if part in str(error)), None)
            if reason is None:
                self.subject.fail(name, f"onnxruntime: {error}")
            else:
                self.subject.skip(f"onnxruntime: {reason}")
            return None


# ---- the run ----------------------------------------------------------------------------------------------------------------


def checked(graph: Graph, feeds: Sequence[Feeds], seen: Seen) -> dict[str, str]:
    """Return the failures of a graph by check; an error counts as one, under its name."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return examine(graph, feeds, seen)
    except Exception as error:
        return {type(error).__name__: str(error)[:3000]}


def against_one(seed: int, seen: Seen, shrinking: float = 20.0) -> list[Failure]:
    """Make the graph of a seed, compare it, and return what differs, shrunk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sample = small_graph(seed)
    seen.graphs += 1
    found = []
    for check, message in checked(sample.graph, sample.feeds, seen).items():

        def fails(graph: Graph, feeds: Sequence[Feeds], check: str = check) -> bool:
            try:
                for given in feeds:
                    evaluate(graph, given)
            except Exception:  # a candidate that does not run says nothing
                return False
            return check in checked(graph, feeds, Seen())

        graph, feeds = shrink(sample.graph, sample.feeds, fails, shrinking)
        found.append(Failure(seed, check, checked(graph, feeds, Seen()).get(check, message), graph, feeds))
    seen.failures += found
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and return 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m flowgrad.tools.maintenance.against_torch",
                                     description="Compare random graphs with PyTorch.")
    parser.add_argument("--graphs", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first graph (default 0)")
    parser.add_argument("--minutes", type=float, default=5.0, help="stop after this time (default 5)")
    parser.add_argument("--shrink", type=float, default=20.0, help="seconds to spend on making a failure small (default 20)")
    given = parser.parse_args(argv)
    try:
        import torch  # noqa: F401
    except ImportError:
        parser.error("PyTorch is not installed; it comes with the extra: pip install 'flowgrad[bench]'")
    seen = Seen()
    started = time.monotonic()
    for seed in range(given.seed, given.seed + given.graphs):
        if time.monotonic() - started > 60 * given.minutes:
            break
        for failure in against_one(seed, seen, given.shrink):
            print(failure, flush=True)
    report(seen, time.monotonic() - started)
    return 1 if seen.failures else 0


def report(seen: Seen, seconds: float, show: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> None:
    """Say what a run saw."""
    show(f"{seen.graphs} graphs of {len(seen.ops)} operators, {len(seen.failures)} failures, {seconds:.0f} s")
    for what, counts in (("operators", seen.ops), ("compared", seen.checked), ("left out", seen.skipped)):
        show(f"{what}: " + "; ".join(f"{n} {c}" for n, c in counts.most_common()))


if __name__ == "__main__":
    sys.exit(main())
