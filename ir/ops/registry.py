"""The operator registry: one ``@op`` block holds all there is to know about an operator."""

from __future__ import annotations

import enum
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from flowgrad.ir.errors import UnsupportedError, ValidationError, suggestion
from flowgrad.ir.types import BOOL, Type, broadcast_shapes

if TYPE_CHECKING:
    from flowgrad.ir.graph import Node


class Trait(enum.Enum):
    """Facts about an operator that generic code relies on."""

    BROADCASTS = "inputs broadcast together elementwise; cotangents may have the broadcast shape"
    ELEMENTWISE = "each output element depends on the input elements at its own place alone"
    LINEAR = "linear in all float inputs jointly: the op is its own tangent"
    BILINEAR = "linear in each of its first two inputs"
    COMMUTATIVE = "the first two inputs may be swapped"
    VIEW = "the kernel may return a view of its first input"
    RANDOM = "never merged, folded or recomputed"
    SHAPE_ARITHMETIC = "the kernel computes on object arrays of dims, so shapes are propagated through it"
    ZERO = "piecewise constant or of integer output: no cotangent passes"
    NON_DIFFERENTIABLE = "floats go in and out, and no derivative is claimed"


class _Required:
    def __repr__(self) -> str:
        return "required"


class _NoGradient:
    def __repr__(self) -> str:
        return "NO_GRADIENT"


REQUIRED: Any = _Required()
NO_GRADIENT: Any = _NoGradient()
"""What an adjoint rule returns for an input that has no derivative: an integer, or one that is zero by mathematics."""


class Refusal:
    """What a rule returns instead of a cotangent that it must not claim."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def refuse(reason: str) -> Any:
    """Return the refusal of an adjoint or tangent rule, with the reason users are told."""
    return Refusal(reason)


SPECIAL = ("out", "work", "rng", "count", "subgraphs", "to_dtype")
"""Keyword-only kernel parameters that are no attributes: an output buffer, scratch buffers, a random generator, the
number of outputs, callables for the subgraphs by name, the NumPy dtype of the first output."""


class OpDef:
    """An operator: signature, kernel and rules. Built by ``@op``; the methods below register its rules."""

    def __init__(
        self,
        name: str,
        kernel: Callable[..., Any],
        *,
        since: int,
        outputs: Sequence[str],
        required_outputs: int,
        variadic_outputs: bool,
        residuals: Sequence[str],
        traits: Sequence[Trait],
        own: bool,
        subgraphs: Sequence[str],
    ) -> None:
        parameters = inspect.signature(kernel).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        keywords = [p for p in parameters if p.kind == p.KEYWORD_ONLY]
        self.name = name
        self.kernel = kernel
        self.since = since
        self.own = own
        self.inputs = tuple(p.name for p in positional)
        self.required_inputs = sum(p.default is p.empty for p in positional)
        self.variadic = any(p.kind == p.VAR_POSITIONAL for p in parameters)
        self.attributes = {p.name: REQUIRED if p.default is p.empty else p.default
                           for p in keywords if p.name not in SPECIAL}
        self.special = frozenset(p.name for p in keywords if p.name in SPECIAL)
        self.outputs = tuple(outputs) + tuple(residuals)
        self.required_outputs = required_outputs
        self.variadic_outputs = variadic_outputs
        self.residuals = tuple(residuals)
        self.subgraphs = tuple(subgraphs)
        self.traits = frozenset(traits)
        self.type_rule: Callable[[Node], Any] | None = _default_type_rule(self.traits)
        self.adjoint_rule: Callable[..., Any] | None = None
        self.tangent_rule: Callable[..., Any] | None = None
        self.partial_rule: Callable[..., Any] | None = None
        self.expansion_rule: Callable[..., Any] | None = None
        self.combine_rule: Callable[..., Any] | None = None
        self.work_rule: Callable[[Node], Any] | None = None
        self.value_rule: Callable[[Node], Any] | None = None
        self.residual_rules: dict[str, Callable[..., Any]] = {}

    def types(self, rule: Callable[[Node], Any]) -> OpDef:
        """Register ``rule(node) -> Type | list[Type | None]``, the types of all declared outputs (or the first one)."""
        self.type_rule = rule
        return self

    def adjoint(self, rule: Callable[..., Any]) -> OpDef:
        """Register ``rule(b, node, *y_bars)``: one cotangent, NO_GRADIENT or refusal per input (then per capture)."""
        self.adjoint_rule = rule
        return self

    def tangent(self, rule: Callable[..., Any]) -> OpDef:
        """Register ``rule(b, node, *x_dots)``: one tangent (or None: zero) per output, absent tangents are None."""
        self.tangent_rule = rule
        return self

    def partials(self, rule: Callable[..., Any]) -> OpDef:
        """Register ``rule(b, node) -> tuple`` of elementwise partial derivatives of output 0, NO_GRADIENT for none."""
        self.partial_rule = rule
        return self

    def expansion(self, rule: Callable[..., Any]) -> OpDef:
        """Register ``rule(b, node) -> value or tuple of values``: the same outputs from plain ONNX ops."""
        self.expansion_rule = rule
        return self

    def residual(self, name: str) -> Callable[[Callable[..., Any]], OpDef]:
        """Register ``rule(b, node) -> value``: the residual output ``name`` from plain ONNX ops, for export."""

        def register(rule: Callable[..., Any]) -> OpDef:
            self.residual_rules[name] = rule
            return self

        return register

    def combine(self, rule: Callable[..., Any]) -> OpDef:
        """Register ``rule(b, nodes) -> value``: the sum of the outputs of several nodes of this op, at linear cost."""
        self.combine_rule = rule
        return self

    def work(self, rule: Callable[[Node], Any]) -> OpDef:
        """Register ``rule(node) -> list[Type]``: scratch buffers the kernel takes as ``work=`` (static types only)."""
        self.work_rule = rule
        return self

    def symbolic(self, rule: Callable[[Node], Any]) -> OpDef:
        """Register ``rule(node) -> object array or None``: the symbolic value of output 0."""
        self.value_rule = rule
        return self

    def attribute(self, node: Node, name: str) -> Any:
        """Return an attribute of a node of this op, or its default."""
        if name in node.attributes:
            return node.attributes[name]
        default = self.attributes[name]
        if default is REQUIRED:
            raise ValidationError(f"{self.name} needs the attribute {name!r}", code="attribute", where=node.label)
        return default

    def is_differentiable(self) -> bool:
        """True if cotangents pass through this op, by a rule or by its expansion."""
        return bool(self.adjoint_rule or self.partial_rule or self.expansion_rule) and Trait.ZERO not in self.traits

    def __repr__(self) -> str:
        return f"<op {self.name}>"


_OPS: dict[str, OpDef] = {}
_loaded = False
FAMILIES = ("elementwise", "maths", "cast", "activation", "logic", "matmul", "reduce", "softmax", "loss", "conv",
            "pool", "norm", "resize", "shape", "layout", "index", "create", "random", "control", "rnn", "own", "marks")


def op(
    name: str,
    *,
    since: int = 1,
    outputs: Sequence[str] = ("Y",),
    required_outputs: int | None = None,
    variadic_outputs: bool = False,
    residuals: Sequence[str] = (),
    traits: Sequence[Trait] = (),
    own: bool = False,
    subgraphs: Sequence[str] = (),
) -> Callable[[Callable[..., Any]], OpDef]:
    """Declare an operator; the decorated function is its kernel.

    Positional parameters are the inputs (a default of None marks an optional one, ``*args`` a variadic rest),
    keyword-only ones the attributes with their defaults, except the names in SPECIAL. ``since`` is the lowest
    opset in which the operator has this meaning and this form. ``required_outputs`` defaults to all of ``outputs``.
    """

    def declare(kernel: Callable[..., Any]) -> OpDef:
        if name in _OPS:
            raise ValidationError(f"the operator {name} is declared twice", code="op")
        needed = len(outputs) if required_outputs is None else required_outputs
        _OPS[name] = OpDef(
            name, kernel, since=since, outputs=outputs, required_outputs=needed, variadic_outputs=variadic_outputs,
            residuals=residuals, traits=traits, own=own, subgraphs=subgraphs,
        )
        return _OPS[name]

    return declare


def _load() -> None:
    global _loaded
    if not _loaded:
        _loaded = True
        for family in FAMILIES:
            importlib.import_module(f"flowgrad.ir.ops.{family}")


def opdef(name: str) -> OpDef:
    """Return the operator called ``name``; UnsupportedError with a suggestion if there is none."""
    _load()
    if name not in _OPS:
        raise UnsupportedError(f"no operator {name!r}{suggestion(name, _OPS)}", code="op")
    return _OPS[name]


def find_op(name: str) -> OpDef | None:
    """Return the operator called ``name``, or None."""
    _load()
    return _OPS.get(name)


def all_ops() -> dict[str, OpDef]:
    """Return all operators by name."""
    _load()
    return dict(_OPS)


def attr(node: Node, name: str) -> Any:
    """Return an attribute of a node, or the default that its op declares."""
    return opdef(node.op).attribute(node, name)


# ---- type rules that many operators share -------------------------------------------------------------------------------


def like_first(node: Node) -> Type:
    """The output has the type of the first input."""
    return node.input(0).type


def broadcasted(node: Node) -> Type:
    """The output has the broadcast shape of all inputs and the dtype of the last."""
    present = [v for v in node.inputs if v is not None]
    return Type(present[-1].type.dtype, broadcast_shapes(*(v.type.shape for v in present)))


def broadcasted_bool(node: Node) -> Type:
    """The output has the broadcast shape of all inputs and dtype bool."""
    return broadcasted(node).with_dtype(BOOL)


def _default_type_rule(traits: frozenset[Trait]) -> Callable[[Node], Any] | None:
    if Trait.BROADCASTS in traits:
        return broadcasted
    return like_first if Trait.ELEMENTWISE in traits else None
