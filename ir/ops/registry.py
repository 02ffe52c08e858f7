"""The operator registry: one ``@op`` block holds all there is to know about an operator."""

from __future__ import annotations

import enum
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from flowgrad.ir.errors import UnsupportedError, ValidationError, suggestion
from flowgrad.ir.registry import Registry, on_scope_end
from flowgrad.ir.types import Type, broadcast_shapes

if TYPE_CHECKING:
    from flowgrad.ir.builder import Builder
    from flowgrad.ir.derivative_builder import DerivativeBuilder
    from flowgrad.ir.graph import Graph, Node, Value


class Trait(enum.Enum):
    """Facts about an operator that generic code relies on."""

    BROADCASTS = "inputs broadcast together elementwise; cotangents may have the broadcast shape"
    ELEMENTWISE = "each output element depends on the input elements at its own place alone"
    LINEAR = "linear in all float inputs jointly: the op is its own tangent; a support rule, if coefficients may be negative"
    BILINEAR = "linear in each of its first two inputs"
    MULTILINEAR = "each term of the result has at most one factor from each float input"
    QUOTIENT = "linear in its first input, for any second"
    CHOOSES = "the first input chooses between the others"
    SPREADS = "linear, and puts what it is given among zeros"
    COMMUTATIVE = "the first two inputs may be swapped"
    VIEW = "the kernel may return a view of its first input, of no other"
    RANDOM = "never merged, folded or recomputed"
    SHAPE_ARITHMETIC = "the kernel computes on object arrays of dims, so shapes are propagated through it"
    SHAPE_ONLY = "depends on the shape of its input alone"
    REGROUPS = "the elements stay in their order, only the shape changes"
    BOUNDED = "extents depend on data, and results are about as large as the operands"
    RESTORES = "gives the floats that quantized operands stand for: of constants, weights"
    MARKED = "its expansion computes the same and has another derivative, unless a reader knows its mark"
    ZERO = "piecewise constant or of integer output: no cotangent passes"
    NON_DIFFERENTIABLE = "floats go in and out, and no derivative is claimed"
    HIDES = "integers that it gives may hold all that a float does, so that they are not piecewise constant"

    __hash__ = object.__hash__  # that of Enum is a function of Python: these are asked for a million times


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

FLOWGRAD = "flowgrad"
"""The domain of operators that the standard does not have: derivatives are made with them, export expands them."""

STANDS_FOR = "flowgrad.op"
"""The metadata key by which a node of an expansion says what it stands for, where plain ONNX cannot."""

Kernel = Callable[..., Any]
Cut = tuple[slice, ...] | None
"""The part of an operand that a piece of work needs; None for all of it."""


class OpDef:
    """An operator: signature, kernel, facts and rules. Built by ``@op``; the methods below register its rules."""

    def __init__(
        self,
        name: str,
        kernel: Kernel,
        *,
        since: int,
        domain: str,
        outputs: Sequence[str],
        required_outputs: int,
        variadic_outputs: bool,
        residuals: Sequence[str],
        traits: Sequence[Trait],
        subgraphs: Sequence[str],
        settings: Sequence[str],
        extents: Sequence[str],
        deciding: Sequence[str],
        float32_inputs: Sequence[str],
        new_dtypes: Sequence[str],
        dtype_attributes: Sequence[str],
        values_since: Mapping[tuple[str, Any], int],
        ufunc: np.ufunc | None,
        in_place: bool,
    ) -> None:
        parameters = inspect.signature(kernel).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        keywords = [p for p in parameters if p.kind == p.KEYWORD_ONLY]
        self.name = name
        self.kernel = kernel
        self.since = since
        self.domain = domain
        self.inputs = tuple(p.name for p in positional)
        self.required_inputs = sum(p.default is p.empty for p in positional)
        rest = [p.name for p in parameters if p.kind == p.VAR_POSITIONAL]
        self.variadic = bool(rest)
        self.attributes = {p.name: REQUIRED if p.default is p.empty else p.default
                           for p in keywords if p.name not in SPECIAL}
        self.required_attributes = tuple(name for name, default in self.attributes.items() if default is REQUIRED)
        self.kinds = {p.name: p.annotation for p in keywords if p.name in self.attributes}
        self.special = frozenset(p.name for p in keywords if p.name in SPECIAL)
        self.outputs = tuple(outputs) + tuple(residuals)
        self.required_outputs = required_outputs
        self.variadic_outputs = variadic_outputs
        self.residuals = tuple(residuals)
        self.subgraphs = tuple(subgraphs)
        self.traits = frozenset(traits)
        self.zeroed_slots = _zeroed_slots(self.traits)
        """How many of the first inputs of an elementwise product or quotient may be what a selection has zeroed."""
        self.extents = self._slots(extents)
        self.settings = self.extents | self._slots(settings)
        self.deciding = self._slots(deciding)
        self.float32_inputs = self._slots(float32_inputs)
        self.new_dtypes = self._slots([n for n in new_dtypes if n not in rest])
        self.mixes_rest = any(n in rest for n in new_dtypes)
        self._check("attribute", (*dtype_attributes, *(name for name, _ in values_since)), self.attributes)
        self.dtype_attributes = tuple(dtype_attributes)
        self.values_since = dict(values_since)
        self.ufunc = ufunc
        self.in_place = in_place
        self.type_rule: Callable[[Node], Any] | None = _default_type_rule(self.traits)
        self.adjoint_rule: Callable[..., Any] | None = None
        self.tangent_rule: Callable[..., Any] | None = None
        self.support_rule: Callable[[DerivativeBuilder, Node, Sequence[Value | None]], Value | None] | None = None
        self.partial_rule: Callable[[DerivativeBuilder, Node], Sequence[Any]] | None = None
        self.expansion_rule: Callable[[Builder, Node], Any] | None = None
        self.combine_rule: Callable[[DerivativeBuilder, Sequence[Node]], Value] | None = None
        self.kink_rule: Callable[[Builder, Node], Value] | None = None
        self.unrounded_rule: Callable[[Builder, Node, Sequence[Value | None]], Value | None] | None = None
        self.batch_rule: Callable[..., Any] | None = None
        self.work_rule: Callable[[Node], Sequence[Type]] | None = None
        self.scratch_rule: Callable[[Node], int] | None = None
        self.value_rule: Callable[[Node], Any] | None = None
        self.residual_rules: Mapping[str, Callable[[Builder, Node], Value]] = {}
        self.specialise_rule: Callable[[Node], Kernel | None] | None = None
        self.split_rule: Callable[[Node], Sequence[tuple[Cut, ...]]] | None = None
        self.formals_rule: Callable[[Node], Sequence[Type]] | None = None
        self.ranks_rule: Callable[[Node], Sequence[int | None]] | None = None
        self.draws_rule: Callable[[Node], bool] | None = None
        self.export_rule: Callable[[Node], bool] | None = None
        self.export_outputs_rule: Callable[[Node], Sequence[Type]] | None = None

    def _slots(self, names: Sequence[str]) -> frozenset[int]:
        """Return the positions of inputs; ValidationError for a name that the kernel does not take."""
        self._check("input", names, self.inputs)
        return frozenset(self.inputs.index(n) for n in names)

    def _check(self, kind: str, names: Iterable[str], known: Collection[str]) -> None:
        for name in names:
            if name not in known:
                raise ValidationError(f"{self.name} has no {kind} {name!r}{suggestion(name, known)}", code="op")

    def _register(self, kind: str, rule: Any) -> OpDef:
        before = getattr(self, kind)
        setattr(self, kind, rule)
        on_scope_end(lambda: setattr(self, kind, before))
        return self

    # ---- what it computes --------------------------------------------------------------------------------------------

    def types(self, rule: Callable[[Node], Any]) -> OpDef:
        """Register ``rule(node) -> Type | list[Type | None]``, the types of all declared outputs (or the first one)."""
        return self._register("type_rule", rule)

    def symbolic(self, rule: Callable[[Node], Any]) -> OpDef:
        """Register ``rule(node) -> object array or None``: the symbolic value of output 0."""
        return self._register("value_rule", rule)

    def formals(self, rule: Callable[[Node], Sequence[Type]]) -> OpDef:
        """Register ``rule(node) -> types`` of the formal inputs of the subgraphs, besides captures, as the inputs tell."""
        return self._register("formals_rule", rule)

    def ranks(self, rule: Callable[[Node], Sequence[int | None]]) -> OpDef:
        """Register ``rule(node) -> ranks`` that the first inputs must have, None for one of any rank.

        An If whose branches differ leaves the rank of what it gives unknown; what uses it may tell.
        """
        return self._register("ranks_rule", rule)

    def draws(self, rule: Callable[[Node], bool]) -> OpDef:
        """Register ``rule(node) -> bool``: whether a node of this random op may draw numbers; all do without a rule."""
        return self._register("draws_rule", rule)

    def expansion(self, rule: Callable[[Builder, Node], Any]) -> OpDef:
        """Register ``rule(b, node) -> value, tuple of values or refusal``: the same outputs from plain ONNX ops."""
        return self._register("expansion_rule", rule)

    def residual(self, name: str) -> Callable[[Callable[[Builder, Node], Value]], OpDef]:
        """Register ``rule(b, node) -> value``: the residual output ``name`` from plain ONNX ops, for export."""
        self._check("residual", (name,), self.residuals)
        return lambda rule: self._register("residual_rules", {**self.residual_rules, name: rule})

    # ---- derivatives -------------------------------------------------------------------------------------------------

    def adjoint(self, rule: Callable[..., Any]) -> OpDef:
        """Register ``rule(b, node, *y_bars)``: one cotangent, NO_GRADIENT or refusal per input (then per capture)."""
        return self._register("adjoint_rule", rule)

    def tangent(self, rule: Callable[..., Any]) -> OpDef:
        """Register ``rule(b, node, *x_dots)``: one tangent (or None: zero) per output, absent tangents are None."""
        return self._register("tangent_rule", rule)

    def partials(self, rule: Callable[[DerivativeBuilder, Node], Sequence[Any]]) -> OpDef:
        """Register ``rule(b, node) -> tuple`` of elementwise partial derivatives of output 0, NO_GRADIENT for none."""
        return self._register("partial_rule", rule)

    def combine(self, rule: Callable[[DerivativeBuilder, Sequence[Node]], Value]) -> OpDef:
        """Register ``rule(b, nodes) -> value``: the sum of the outputs of several nodes of this op, at linear cost."""
        return self._register("combine_rule", rule)

    def support(self, rule: Callable[[DerivativeBuilder, Node, Sequence[Value | None]], Value | None]) -> OpDef:
        """Register ``rule(b, node, masks) -> mask``: where the output may be other than zero, given that of each input.

        Masks are booleans that broadcast to their value; None says everywhere. Elementwise and other linear ops need none.
        """
        return self._register("support_rule", rule)

    def kinks(self, rule: Callable[[Builder, Node], Value]) -> OpDef:
        """Register ``rule(b, node) -> booleans``: where the op is evaluated exactly where its derivative jumps or has no
        end, so that what the derivative rules give there is a convention."""
        return self._register("kink_rule", rule)

    def unrounded(self, rule: Callable[[Builder, Node, Sequence[Value | None]], Value | None]) -> OpDef:
        """Register ``rule(b, node, reals) -> value or None``: what output 0 is before it is rounded, in a float type.

        ``reals`` are what the inputs are before they are rounded, None for one that is not known to be rounded; None is
        returned where nothing is rounded. ``through_quantization`` differentiates these.
        """
        return self._register("unrounded_rule", rule)

    # ---- many examples at once ---------------------------------------------------------------------------------------

    def batch(self, rule: Callable[..., Any]) -> OpDef:
        """Register ``rule(b, node, *xs)``: one value per output (or refusal), for many examples at once.

        ``xs`` stand for the inputs, then the captures; those that ``b.holds`` have one array per example along a new
        first axis, and so has what is returned, unless ``b.same`` marks it. Elementwise ops need no rule; without one, the
        examples are run one after the other.
        """
        return self._register("batch_rule", rule)

    # ---- how it runs -------------------------------------------------------------------------------------------------

    def work(self, rule: Callable[[Node], Sequence[Type]]) -> OpDef:
        """Register ``rule(node) -> list[Type]``: scratch buffers the kernel takes as ``work=`` (static types only)."""
        return self._register("work_rule", rule)

    def scratch(self, rule: Callable[[Node], int]) -> OpDef:
        """Register ``rule(node) -> bytes`` that the kernel takes for itself while it runs (static types only), beyond its
        results and ``work``: the plan of a run counts them."""
        return self._register("scratch_rule", rule)

    def specialise(self, rule: Callable[[Node], Kernel | None]) -> OpDef:
        """Register ``rule(node) -> kernel or None``: a faster kernel for a node whose types are all static.

        It is called with the inputs, then ``out``, by position, and must give the bits that the op's own kernel gives;
        None leaves the node to that one. The node's attributes, types and constant inputs may decide.
        """
        return self._register("specialise_rule", rule)

    def split(self, rule: Callable[[Node], Sequence[tuple[Cut, ...]]]) -> OpDef:
        """Register ``rule(node) -> cuts``: pieces of work for the threads, for a node whose types are all static.

        A piece cuts every input, then the output. The cuts must not depend on the number of threads, so that results
        do not either; fewer than two leave the work whole. Elementwise ops are cut without a rule.
        """
        return self._register("split_rule", rule)

    # ---- export ------------------------------------------------------------------------------------------------------

    def expands_on_export(self, rule: Callable[[Node], bool]) -> OpDef:
        """Register ``rule(node) -> bool``: export a node by its expansion, since runtimes do not do what it says.

        Operators of the flowgrad domain are always exported so.
        """
        return self._register("export_rule", rule)

    def export_outputs(self, rule: Callable[[Node], Sequence[Type]]) -> OpDef:
        """Register ``rule(node) -> types`` of the outputs that runtimes want named, also where nobody uses them."""
        return self._register("export_outputs_rule", rule)

    # ---- asking ------------------------------------------------------------------------------------------------------

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


def families() -> list[str]:
    """Return the modules that declare operators: all beside and below this one, by name."""
    from flowgrad.ir import ops

    return sorted(m.name for m in pkgutil.walk_packages(ops.__path__, f"{ops.__name__}."))


def _load_families() -> None:
    for module in families():
        importlib.import_module(module)


_OPS: Registry[OpDef] = Registry("an operator", _load_families, UnsupportedError)


def op(
    name: str,
    *,
    since: int = 1,
    domain: str = "",
    outputs: Sequence[str] = ("Y",),
    required_outputs: int | None = None,
    variadic_outputs: bool = False,
    residuals: Sequence[str] = (),
    traits: Sequence[Trait] = (),
    subgraphs: Sequence[str] = (),
    settings: Sequence[str] = (),
    extents: Sequence[str] = (),
    deciding: Sequence[str] = (),
    float32_inputs: Sequence[str] = (),
    new_dtypes: Sequence[str] = (),
    dtype_attributes: Sequence[str] = (),
    values_since: Mapping[tuple[str, Any], int] = MappingProxyType({}),
    ufunc: np.ufunc | None = None,
    in_place: bool = False,
) -> Callable[[Kernel], OpDef]:
    """Declare an operator; the decorated function is its kernel.

    Positional parameters are the inputs (a default of None marks an optional one, ``*args`` a variadic rest),
    keyword-only ones the attributes with their defaults, except the names in SPECIAL. ``since`` is the lowest
    opset in which the operator has this meaning and this form, ``values_since`` the opsets of (attribute, value) that
    came later. ``required_outputs`` defaults to all of ``outputs``; ``residuals`` are outputs beyond the standard's, which
    the forward pass keeps for the backward pass.

    Facts about inputs, by name: ``extents`` are integers that the type rule reads, so that they steer shapes;
    ``settings`` are floats that are no weights (statistics, bounds, ratios; extents are settings too); ``deciding`` say
    which subgraph runs, or how often; ``float32_inputs`` stay float32 whatever the rest computes in, and so do not the
    dtypes that ``dtype_attributes`` name. The other floats are of one dtype up to the first of ``new_dtypes``, where another
    one may begin, with each of a variadic rest. ``ufunc`` is the one NumPy call that the kernel makes, if that is all it does
    for operands of one dtype; with ``in_place`` the kernel may write over an operand.

    Examples:
        >>> from flowgrad.ir.ops.registry import Trait
        >>> @fg.op("Twice", domain="flowgrad", traits=(Trait.ELEMENTWISE, Trait.LINEAR))
        ... def twice(x, *, out=None):
        ...     return np.multiply(x, 2, out=out)
        >>> fg.load(b"graph @g (%x: f32[2]) -> (%y: f32[2]) { %y: f32[2] = Twice(%x) }")(x=np.ones(2, np.float32))["y"]
        array([2., 2.], dtype=float32)
    """

    def declare(kernel: Kernel) -> OpDef:
        needed = len(outputs) if required_outputs is None else required_outputs
        definition = OpDef(
            name, kernel, since=since, domain=domain, outputs=outputs, required_outputs=needed,
            variadic_outputs=variadic_outputs, residuals=residuals, traits=traits, subgraphs=subgraphs,
            settings=settings, extents=extents, deciding=deciding, float32_inputs=float32_inputs,
            new_dtypes=new_dtypes, dtype_attributes=dtype_attributes, values_since=values_since, ufunc=ufunc, in_place=in_place,
        )
        _OPS.add(name, definition)
        return definition

    return declare


def opdef(name: str) -> OpDef:
    """Return the operator called ``name``; UnsupportedError with a suggestion if there is none."""
    return _OPS.entries.get(name) or _OPS.get(name)


class Borrowed:
    """The operators of a graph that were declared inside of a scope: what holds the graph needs them to be there still."""

    def __init__(self, graph: Graph) -> None:
        used = {n.op for _, n in graph.walk()} if _OPS.passing else ()
        self.definitions = {name: _OPS.passing[name] for name in used if name in _OPS.passing}

    def check(self) -> None:
        """Raise UnsupportedError if one is gone, though another may have its name by now."""
        for name, definition in self.definitions.items():
            if _OPS.entries.get(name) is not definition:
                raise UnsupportedError(
                    f"no operator {name!r} as it was when this model was made: the scope that declared it has ended; declare it "
                    "outside of flowgrad.scoped(), or make the model again", code="operator")


def find_op(name: str) -> OpDef | None:
    """Return the operator called ``name``, or None."""
    return _OPS.find(name)


def all_ops() -> dict[str, OpDef]:
    """Return all operators by name."""
    return _OPS.all()


def attr(node: Node, name: str) -> Any:
    """Return an attribute of a node, or the default that its op declares."""
    return opdef(node.op).attribute(node, name)


def is_random(node: Node) -> bool:
    """Return whether a node draws random numbers, itself or in its subgraphs."""
    return _draws(node) or any(_draws(n) for g in node.subgraphs.values() for _, n in g.walk())


def _draws(node: Node) -> bool:
    definition = opdef(node.op)
    return Trait.RANDOM in definition.traits and (definition.draws_rule is None or definition.draws_rule(node))


# ---- type rules that many operators share -------------------------------------------------------------------------------


def like_first(node: Node) -> Type:
    """The output has the type of the first input."""
    return node.input(0).type


def broadcasted(node: Node) -> Type:
    """The output has the broadcast shape of all inputs and the dtype of the last."""
    types = [v.type for v in node.operands]
    last = types[-1]
    if all([t.shape == last.shape for t in types]):
        return last
    return Type(last.dtype, broadcast_shapes(*[t.shape for t in types]))


def _zeroed_slots(traits: frozenset[Trait]) -> int:
    if Trait.ELEMENTWISE not in traits:
        return 0
    return 2 if Trait.BILINEAR in traits else 1 if Trait.QUOTIENT in traits else 0


def _default_type_rule(traits: frozenset[Trait]) -> Callable[[Node], Any] | None:
    if Trait.BROADCASTS in traits:
        return broadcasted
    return like_first if Trait.ELEMENTWISE in traits else None
