"""A gradient check a user can run on a model: reverse and forward mode against differences, in float64."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flowgrad.ir.arguments import check_kind, check_mapping, check_positive, is_word
from flowgrad.ir.errors import InputError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.feeds import Signature
from flowgrad.ir.graph import Array
from flowgrad.ir.roles import Role
from flowgrad.model import Model
from flowgrad.passes.differences import central_difference, moved
from flowgrad.passes.selection import Names, as_list, find_value
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.runtime.program import Program
from flowgrad.transforms.derivatives import jvp, vjp

Feeds = Mapping[str, Array]
Function = Callable[[dict[str, Array]], float]


@dataclass(frozen=True)
class Check:
    """One comparison: what was compared, both numbers, how far apart they may be, and whether they are nearer.

    ``kink`` is set where the point lies on a kink and has no one right number: what was compared is then those beside it.
    """

    what: str
    got: float
    expected: float
    allowed: float
    passed: bool
    kink: bool = False


@dataclass(frozen=True)
class GradcheckResult:
    """All comparisons of a gradient check; true in a boolean context if every one passed."""

    checks: list[Check]

    def __bool__(self) -> bool:
        return all(c.passed for c in self.checks)


def gradcheck(
    model: Model,
    inputs: Mapping[str, Any],
    of: Names | None = None,
    wrt: Names = "inputs",
    modes: Sequence[str] = ("rev", "fwd"),
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    samples: int = 3,
    seed: int = 0,
) -> GradcheckResult:
    """Compare <y_bar, J v> from the derivative graphs with central differences, along ``samples`` random directions v.

    The model is converted to float64 first. Each x in ``wrt`` is moved alone, relative to its largest magnitude. A step
    that crosses a kink is made smaller; where the point itself lies on one, a point beside it is checked instead.
    Raises InputError for an unknown mode or name.

    Examples:
        >>> bool(fg.gradcheck(model, batch, of="loss", wrt="params"))
        True
    """
    if isinstance(modes, str) or not isinstance(modes, Collection) or not len(modes) or not all(is_word(m, ("rev", "fwd")) for m in modes):
        raise InputError(f"modes are 'rev' and 'fwd', one or both in a list, got {modes!r}", code="modes")
    check_kind("model", model, Model)
    check_mapping("inputs", inputs, "names to arrays")
    check_positive("eps", eps)
    wide = _with_outputs(_without_roles(model.astype("float64")), of)
    feeds = {k: _wide(v) for k, v in inputs.items()}
    reverse = vjp(wide, of, wrt, zero="allow")
    gradients = {w: name for (role, _, w), name in reverse.roles.items() if role == "grad"}
    rng = np.random.default_rng(seed)
    at = {n: feeds[n] if n in feeds else _value(reverse, n) for n in gradients}
    outputs = {o: name for (role, o, _), name in reverse.roles.items() if role == "cotangent"}
    shapes = _shapes(wide, reverse, outputs, feeds)
    cotangents = {o: np.asarray(rng.standard_normal(shapes[o])) for o in outputs}
    fixed = {**feeds, **{outputs[o]: ct for o, ct in cotangents.items()}}
    slopes: list[_Slope] = []
    for _ in range(samples):
        for name in gradients:
            direction = np.asarray(rng.standard_normal(at[name].shape))
            step = eps * max(1.0, float(np.abs(at[name]).max(initial=0.0)))
            slopes.append(_Slope({name: at[name]}, {name: direction}, step, atol, rtol))
    program = reverse.compile()
    del reverse  # a large graph is not held while others are made
    found = [_reverse_checks(program, fixed, gradients, cotangents, slopes)] if "rev" in modes else []
    del program
    if "fwd" in modes:
        found.append(_forward_checks(wide, of, wrt, feeds, at, cotangents, slopes))
    return GradcheckResult([check for checks in zip(*found, strict=True) for check in checks])


def _with_outputs(model: Model, of: Names | None) -> Model:
    """Let a model of our own tell the values that are to be differentiated, also inner ones."""
    graph = model.graph
    for name in () if of is None else as_list(of):
        if isinstance(name, str) and all(entry.name != name for entry in graph.output_entries):
            graph.add_output(find_value(graph, name), name)
    return model


def _reverse_checks(
    program: Program, fixed: Feeds, gradients: Mapping[str, str], cotangents: Feeds, slopes: Sequence[_Slope],
) -> list[Check]:
    """Compare what the gradients, which have these names, are along the direction of each slope."""
    here, paired, checks = program.run(fixed), _pairing(program, fixed, cotangents), []
    for slope in slopes:
        ((name, direction),) = slope.direction.items()
        pulled = _pulled(program, fixed, gradients[name], direction)
        checks.append(slope.check(paired, f"reverse {name}", float(np.sum(here[gradients[name]] * direction)), pulled))
    return checks


def _forward_checks(
    wide: Model, of: Names | None, wrt: Names, feeds: Feeds, at: Feeds, cotangents: Feeds, slopes: Sequence[_Slope],
) -> list[Check]:
    """Compare what tangents along the direction of each slope are.

    Their graph runs a few times only, and as it stands: to optimise it would take longer.
    """
    forward = jvp(wide, of, wrt, zero="allow")
    program, checks = NumpyProgram(forward.graph), []
    for slope in slopes:
        ((name, direction),) = slope.direction.items()
        given = {**feeds, **_tangents(forward.roles, at, name, direction)}
        paired, pushed = _pairing(program, given, cotangents), _pushed(program, forward.roles, given, cotangents)
        got = pushed({})
        if not np.isfinite(got) and len(at) > 1:  # 0 times the NaN of another's partial
            alone = jvp(wide, of, name, zero="allow")
            given = {**feeds, **_tangents(alone.roles, at, name, direction)}
            pushed = _pushed(NumpyProgram(alone.graph), alone.roles, given, cotangents)
            got = pushed({})
        checks.append(slope.check(paired, f"forward {name}", got, pushed))
    return checks


SMALLEST_STEP = 1e-3
"""How far a step that crosses kinks is made smaller, relative to the first one; rounding would take over."""

ASIDE = 1e3
"""How far a point on a kink is moved to one side of it, in steps."""


@dataclass
class _Slope:
    """The slope of a function along a direction, by differences with steps that get smaller where a kink is near.

    The function is given with every check: different programs may compute the same one.
    """

    at: dict[str, Array]
    direction: dict[str, Array]
    step: float
    atol: float
    rtol: float
    differences: dict[float, float] = field(default_factory=dict, init=False)
    """What was found so far, by the step."""

    def check(self, function: Function, what: str, got: float, slope_at: Function) -> Check:
        """Compare ``got`` with the slope of ``function``; on a kink, what ``slope_at`` gives beside it with the slope there."""
        found = self._nearest(function, what, got)
        if found.passed or not np.isfinite(got) or not self._is_kink(function, found.allowed):
            return found
        rng = np.random.default_rng(0)
        beside = {k: a + ASIDE * self.step * rng.standard_normal(a.shape) for k, a in self.at.items()}
        return replace(replace(self, at=beside)._nearest(function, what, slope_at(beside)), kink=True)

    def _nearest(self, function: Function, what: str, got: float) -> Check:
        """Compare ``got`` with central differences, the first if none of them agrees."""
        steps = [self.step]
        while steps[-1] > 2 * self.step * SMALLEST_STEP:
            steps.append(steps[-1] / 10)
        first = None
        for step in steps:
            expected = self._difference(function, step)
            check = _check(what, got, expected, self.atol + self.rtol * abs(expected))
            if check.passed or not np.isfinite(got):
                return check
            first = first or check
        assert first is not None
        return first

    def _difference(self, function: Function, step: float) -> float:
        if step not in self.differences:
            self.differences[step] = central_difference(function, self.at, self.direction, step)
        return self.differences[step]

    def _is_kink(self, function: Function, allowed: float) -> bool:
        """Return whether the differences to both sides stay apart however small the step."""
        step = self.step * SMALLEST_STEP
        here = function(dict(self.at))
        ahead, behind = (function(moved(self.at, self.direction, s)) for s in (step, -step))
        return abs((ahead - here) / step - (here - behind) / step) > allowed


def compare_engines(model: Model, inputs: Mapping[str, Any], of: Names | None, wrt: Names, engine: str, seed: int = 0
                    ) -> list[Check]:
    """Compare the gradients of the NumPy engine with those of another one, entry by entry (largest difference)."""
    reverse = vjp(_without_roles(model), of, wrt, zero="allow")
    rng = np.random.default_rng(seed)
    feeds = {k: np.asarray(v) for k, v in inputs.items()}
    base = model(feeds)
    for (role, o, _), name in reverse.roles.items():
        if role == "cotangent":
            like = _output(base, model, o, feeds)
            feeds[name] = np.asarray(rng.standard_normal(like.shape)).astype(like.dtype)
    mine, theirs = reverse(feeds), reverse.compile(engine=engine).run(feeds)
    checks = []
    for (role, _, _), name in reverse.roles.items():
        if role == "grad":
            a, b = mine[name].astype(np.float64), np.asarray(theirs[name]).astype(np.float64)
            scale = float(np.abs(a).max(initial=0.0))
            off = float(np.abs(a - b).max(initial=0.0))
            checks.append(Check(f"{engine} {name}", scale + off, scale, 1e-3 * scale + 1e-6, off <= 1e-3 * scale + 1e-6))
    return checks


def _without_roles(model: Model) -> Model:
    """Return a model whose roles will be those of the next transform alone: it may be a derivative itself."""
    bare = model.with_graph(model.graph)
    bare.roles = {}
    return bare


def _check(what: str, got: float, expected: float, allowed: float) -> Check:
    return Check(what, got, expected, allowed, abs(got - expected) <= allowed)


def _wide(value: Any) -> Array:
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype.kind in "fV" else array


def _value(model: Model, name: str) -> Array:
    data = model.graph.value(name).producer.data
    if data is None:
        raise InputError(f"{name!r} is neither an input nor a constant: it cannot be moved by itself", code="name")
    return np.asarray(data)


def _output(outputs: Mapping[str, Array], model: Model, name: str, feeds: Mapping[str, Array]) -> Array:
    if name in outputs:
        return outputs[name]
    value = find_value(model.graph, name)
    return next(iter(evaluate(model.graph, feeds, fetch=[value]).values()))


def _shapes(model: Model, reverse: Model, cotangents: Mapping[str, str], feeds: Mapping[str, Array]
            ) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what is differentiated, from the types of its cotangents where these say them."""
    Signature(model.graph).checked(feeds)
    types = {o: reverse.graph.value(name).type for o, name in cotangents.items()}
    if all(t.is_static for t in types.values()):
        return {o: t.static_shape for o, t in types.items()}
    base = model(feeds)
    return {o: _output(base, model, o, feeds).shape for o in cotangents}


def _pairing(program: Program, fixed: Feeds, cotangents: Feeds) -> Function:
    """Return the function <y, y_bar> of what is moved; all else is ``fixed``."""

    def paired(point: dict[str, Array]) -> float:
        found = program.run({**fixed, **point})
        return float(sum(np.sum(found[o] * ct) for o, ct in cotangents.items()))

    return paired


def _pulled(program: Program, fixed: Feeds, output: str, direction: Array) -> Function:
    """Return the function <gradient, direction> of the point."""
    return lambda point: float(np.sum(program.run({**fixed, **point})[output] * direction))


def _tangents(roles: Mapping[Role, str], at: Feeds, name: str, direction: Array) -> Feeds:
    """Return the tangents of what is moved: ``direction`` for ``name``, zeros for the rest."""
    return {given: direction if w == name else np.zeros(at[w].shape)
            for (role, _, w), given in roles.items() if role == "tangent" and w}


def _pushed(program: Program, roles: Mapping[Role, str], given: Feeds, cotangents: Feeds) -> Function:
    """Return the function <tangent, y_bar> of the point, of feeds and tangents that are ``given``."""

    def pushed(point: dict[str, Array]) -> float:
        found = program.run({**given, **point})
        return float(sum(np.sum(found[roles["tangent", o, ""]] * ct) for o, ct in cotangents.items()))

    return pushed
