"""Patterns of rewrites: IR text such as ``"Add(MatMul(%x, %w), %c)"``, checked against the op table, and their matcher."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowgrad.ir.errors import InputError, ValidationError
from flowgrad.ir.graph import CONSTANT, Node, Value
from flowgrad.ir.kept import kept
from flowgrad.ir.ops.registry import Trait, all_ops, attr, opdef
from flowgrad.passes.edits import recompute_of


@dataclass(frozen=True)
class Variable:
    """``%x`` binds one operand, ``%x?`` also an absent one, ``*%xs`` all that are left."""

    name: str
    optional: bool = False
    rest: bool = False


@dataclass(frozen=True)
class Number:
    """A number matches a constant all of whose elements equal it; 0.0 does not match -0.0."""

    value: float
    text: str


@dataclass(frozen=True)
class Application:
    """``Op(...)``: a node of one of ``ops``; as an argument, a node that only this match uses."""

    ops: tuple[str, ...]
    arguments: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @kept
    def makers(self) -> list[tuple[int, tuple[str, ...]]]:
        """The arguments that must come from certain ops, by place."""
        ops = [a.ops if isinstance(a, Application) else (CONSTANT,) if isinstance(a, Number) else None
               for a in self.arguments]
        return [(index, found) for index, found in enumerate(ops) if found is not None]

    @kept
    def takes_all(self) -> bool:
        """True if one variable takes all operands, in whatever order."""
        return len(self.arguments) == 1 and isinstance(self.arguments[0], Variable) and self.arguments[0].rest

    @kept
    def needs(self) -> list[frozenset[str]]:
        """The ops of which there must be one among the makers of the operands, for each such argument."""
        return [frozenset(ops) for _, ops in self.makers]

    @kept
    def numbers(self) -> list[float]:
        """The numbers that must be among the operands."""
        return [a.value for a in self.arguments if isinstance(a, Number)]

    @kept
    def twins(self) -> list[tuple[int, int]]:
        """The places that must hold the same value, in pairs."""
        names = [a.name if isinstance(a, Variable) and not a.rest else None for a in self.arguments]
        return [(names.index(name), index) for index, name in enumerate(names)
                if name is not None and names.index(name) < index]

    @property
    def depth(self) -> int:
        """How many nodes deep the pattern is."""
        return 1 + max((a.depth for a in self.arguments if isinstance(a, Application)), default=0)

    def variables(self) -> list[str]:
        """Return the names bound, in order."""
        found: list[str] = []
        for argument in self.arguments:
            found += argument.variables() if isinstance(argument, Application) else []
            found += [argument.name] if isinstance(argument, Variable) else []
        return list(dict.fromkeys(found))


Pattern = Application | Variable | Number


@dataclass(frozen=True)
class Match:
    """A match: the root, what the variables stand for, and all matched nodes (the root last)."""

    root: Node
    bound: Mapping[str, Any]
    nodes: tuple[Node, ...]


# ---- reading ------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"\s*(?:(?P<rest>\*%\w+)|(?P<variable>%\w+\??)|(?P<trait><[A-Z_]+>)|(?P<number>-?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf))"
    r"|(?P<op>[A-Z]\w*(?:\|[A-Z]\w*)*)|(?P<attributes>\{[^}]*\})|(?P<mark>[(),]))"
)


def parse_pattern(text: str) -> Application:
    """Read a pattern and check it against the op table.

    Raises ValidationError for bad syntax, an unknown attribute or too many arguments, UnsupportedError for an unknown op.
    """
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _error(text, f"unexpected {text[at:]!r}")
        kind = str(match.lastgroup)
        tokens.append((kind, match.group(kind)))
        at = match.end()
    pattern, end = _read(text, tokens, 0)
    if end != len(tokens) or not isinstance(pattern, Application):
        raise _error(text, "it must be one application of an op")
    return pattern


def _error(text: str, what: str) -> ValidationError:
    return ValidationError(f"cannot read the pattern {text!r}: {what}", code="pattern")


def _read(text: str, tokens: list[tuple[str, str]], at: int) -> tuple[Pattern, int]:
    kind, token = tokens[at] if at < len(tokens) else ("end", "")
    if kind == "rest":
        return Variable(token[2:], rest=True), at + 1
    if kind == "variable":
        return Variable(token[1:].rstrip("?"), optional=token.endswith("?")), at + 1
    if kind == "number":
        return Number(float(token), token), at + 1
    if kind not in ("op", "trait") or tokens[at + 1: at + 2] != [("mark", "(")]:
        raise _error(text, f"an argument is missing before {token!r}")
    arguments: list[Pattern] = []
    at += 2
    while tokens[at: at + 1] != [("mark", ")")]:
        if arguments:
            if tokens[at: at + 1] != [("mark", ",")]:
                raise _error(text, "a comma or a closing parenthesis is missing")
            at += 1
        argument, at = _read(text, tokens, at)
        arguments.append(argument)
    at += 1
    attributes = {}
    if tokens[at: at + 1] and tokens[at][0] == "attributes":
        attributes = _read_attributes(text, tokens[at][1])
        at += 1
    ops = _with_trait(token[1:-1]) if kind == "trait" else tuple(token.split("|"))
    pattern = Application(ops, tuple(arguments), attributes)
    _check(text, pattern)
    return pattern, at


def _with_trait(name: str) -> tuple[str, ...]:
    try:
        trait = Trait[name]
    except KeyError:
        raise InputError(f"no trait {name!r}", code="pattern") from None
    return tuple(o.name for o in all_ops().values() if trait in o.traits)


def _read_attributes(text: str, body: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for name, value in re.findall(r"(\w+)\s*=\s*(\[[^\]]*\]|[^,}\s]+)", body):
        if value.startswith("["):
            attributes[name] = tuple(int(n) for n in value[1:-1].split(",") if n.strip())
        elif re.fullmatch(r"-?\d+", value):
            attributes[name] = int(value)
        else:
            attributes[name] = value.strip('"')
    if not attributes:
        raise _error(text, f"no attribute in {body!r}")
    return attributes


def _check(text: str, pattern: Application) -> None:
    for op in pattern.ops:
        definition = opdef(op)
        most = len(definition.inputs)
        if len(pattern.arguments) > most and not definition.variadic:
            raise _error(text, f"{op} takes at most {most} inputs")
        for name in pattern.attributes:
            if name not in definition.attributes:
                raise _error(text, f"{op} has no attribute {name!r}")
    if any(isinstance(a, Variable) and a.rest for a in pattern.arguments[:-1]):
        raise _error(text, "only the last argument can take the rest")


# ---- matching -------------------------------------------------------------------------------------------------------------


def matches(
    pattern: Application, root: Node, *, shared: bool = False, pinned: Container[str] = ()
) -> Iterator[Match]:
    """Yield the ways in which ``root`` matches, operands of commutative ops taken in either order.

    Inner nodes have no user outside the match, unless ``shared``, and are never ``pinned``.
    """
    if pattern.twins and not pattern.makers and not _may_fit(pattern, root.inputs):
        return
    recompute = recompute_of(root)

    def accepts(value: Value) -> bool:
        if value.name in pinned or recompute_of(value.producer) != recompute:
            return False
        return shared or _is_alone(value)

    for bound, nodes in _match_node(pattern, root, {}, accepts):
        yield Match(root, bound, tuple(dict.fromkeys(nodes)))


_State = tuple[dict[str, Any], tuple[Node, ...]]
_Accepts = Callable[[Value], bool]


def _match_node(pattern: Application, node: Node, bound: dict[str, Any], accepts: _Accepts) -> list[_State]:
    if node.op not in pattern.ops or (pattern.attributes and any(attr(node, k) != v for k, v in pattern.attributes.items())):
        return []
    return [(found, (*nodes, node)) for operands in ([node.inputs] if pattern.takes_all else _orders(node))
            if _may_fit(pattern, operands) and not _may_reshape(pattern, node, operands)
            for found, nodes in _match_arguments(pattern.arguments, operands, bound, accepts)]


def _orders(node: Node) -> list[Sequence[Value | None]]:
    inputs = node.inputs
    if len(inputs) == 2 and inputs[0] is not inputs[1] and Trait.COMMUTATIVE in opdef(node.op).traits:
        return [inputs, inputs[::-1]]
    return [inputs]


def _may_fit(pattern: Application, operands: Sequence[Value | None]) -> bool:
    """Return whether operands come from the ops, and are the same values, that the pattern says: a quick look ahead."""
    for index, ops in pattern.makers:
        value = operands[index] if index < len(operands) else None
        if value is None or value.producer.op not in ops:
            return False
    for first, second in pattern.twins:
        if second >= len(operands) or operands[first] is not operands[second]:
            return False
    return True


def _may_reshape(pattern: Application, node: Node, operands: Sequence[Value | None]) -> bool:
    """Return whether a number with axes is broadcast beside operands of unknown rank: then types do not tell what it adds."""
    made = node.outputs[0] if node.outputs else None
    if made is None or made.type.shape is not None or Trait.BROADCASTS not in opdef(node.op).traits:
        return False
    return any(isinstance(argument, Number) and value is not None and value.type.rank != 0
               for argument, value in zip(pattern.arguments, operands, strict=False))


def _match_arguments(
    arguments: Sequence[Pattern], operands: Sequence[Value | None], bound: dict[str, Any], accepts: _Accepts
) -> list[_State]:
    states: list[_State] = [(bound, ())]
    count = len(operands)
    for index, argument in enumerate(arguments):
        if isinstance(argument, Variable) and argument.rest:
            return [({**found, argument.name: list(operands[index:])}, nodes) for found, nodes in states]
        operand = operands[index] if index < count else None
        states = [(found, (*nodes, *more)) for known, nodes in states
                  for found, more in _match_one(argument, operand, known, accepts)]
        if not states:
            return states
    return states if count <= len(arguments) else []


def _match_one(pattern: Pattern, value: Value | None, bound: dict[str, Any], accepts: _Accepts) -> list[_State]:
    if isinstance(pattern, Variable):
        if value is None and not pattern.optional:
            return []
        if pattern.name in bound:
            return [(bound, ())] if bound[pattern.name] is value else []
        return [({**bound, pattern.name: value}, ())]
    if value is None:
        return []
    if isinstance(pattern, Number):
        return [(bound, ())] if _is_number(value, pattern) else []
    if value.producer.op in pattern.ops and accepts(value):
        return _match_node(pattern, value.producer, bound, accepts)
    return []


def _is_alone(value: Value) -> bool:
    """Return whether a value has one user, and its node no other output that is used."""
    return len(value.uses) == 1 and all(v is value or v is None or not v.uses for v in value.producer.outputs)


def _is_number(value: Value, number: Number) -> bool:
    array = value.constant
    if array is None or array.size == 0 or not (value.type.dtype.is_integer or value.type.dtype.is_float):
        return False
    first = array.flat[0]
    if first != number.value or not bool(np.all(array == first)):
        return False
    if number.value != 0 or value.type.dtype.is_integer:
        return True
    return bool(np.all(np.signbit(array.astype(np.float64)) == number.text.startswith("-")))


