"""Types of values: a dtype and a shape whose dims are integers or integer expressions over named dims."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from flowgrad.ir.dtypes import BFLOAT16 as BFLOAT16
from flowgrad.ir.dtypes import BOOL as BOOL
from flowgrad.ir.dtypes import FLOAT16 as FLOAT16
from flowgrad.ir.dtypes import FLOAT32 as FLOAT32
from flowgrad.ir.dtypes import FLOAT64 as FLOAT64
from flowgrad.ir.dtypes import INT32 as INT32
from flowgrad.ir.dtypes import INT64 as INT64
from flowgrad.ir.dtypes import STRING as STRING
from flowgrad.ir.dtypes import UINT8 as UINT8
from flowgrad.ir.dtypes import DType as DType
from flowgrad.ir.dtypes import dtype_of as dtype_of
from flowgrad.ir.errors import LimitError, ValidationError, safe_text
from flowgrad.ir.limits import DIM_TERMS
from flowgrad.ir.names import QUOTED, quote, unquote

# ---- dims -------------------------------------------------------------------------------------------------------------

MOST_NESTED = 32
"""How deep floor divisions may lie in each other."""

_INT64 = 2**63

Atom = str | tuple["DimLike", "DimLike"]  # a named dim, or a floor division
Monomial = tuple[Atom, ...]


class Dim:
    """An integer expression over named dims in canonical form: a sum of integer multiples of products of atoms.

    An atom is a name or a floor division of two expressions. Two expressions that are equal as polynomials are
    equal, hash alike and print alike. Instances are never plain integers: arithmetic returns ``int`` where it can, and
    UNKNOWN where the result would be too large an expression (``size`` above DIM_TERMS, ``depth`` above MOST_NESTED,
    a coefficient beyond int64), so that its cost is bounded whatever it is given.

    ``size`` counts terms and atoms, those within floor divisions too; ``depth`` is that of the divisions.
    """

    __slots__ = ("_hash", "_names", "_text", "depth", "size", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)
        self._names: frozenset[str] | None = None
        self._text = ""
        self.size, self.depth = len(terms), 0
        for monomial, _ in terms:
            self.size += len(monomial)
            for atom in monomial:
                if atom.__class__ is not str:
                    self._count(atom)  # type: ignore[arg-type]  # what is no name is a division

    def _count(self, division: tuple[DimLike, DimLike]) -> None:
        parts = [part for part in division if isinstance(part, Dim)]
        self.size += sum(part.size for part in parts)
        self.depth = max(self.depth, 1 + max(part.depth for part in parts))

    @staticmethod
    def named(name: str) -> Dim:
        """Return the dim called ``name``."""
        return Dim((((name,), 1),))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self._hash == other._hash and self.terms == other.terms

    def __add__(self, other: object) -> DimLike:
        if not is_dim(other):
            return NotImplemented
        return _from_terms((*self.terms, *_terms(other)))

    __radd__ = __add__

    def __neg__(self) -> DimLike:
        return _from_terms(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: object) -> DimLike:
        if not is_dim(other):
            return NotImplemented
        return _from_terms((*self.terms, *((m, -c) for m, c in _terms(other))))

    def __rsub__(self, other: object) -> DimLike:
        return -self + other if is_dim(other) else NotImplemented

    def __mul__(self, other: object) -> DimLike:
        if not is_dim(other):
            return NotImplemented
        terms = _terms(other)
        if len(self.terms) * len(terms) > DIM_TERMS:
            return UNKNOWN
        products = ((m + n, c * d) for m, c in self.terms for n, d in terms)
        return _from_terms(tuple((tuple(sorted(m, key=_atom_key)), c) for m, c in products))

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> DimLike:
        return floor_div(self, other) if is_dim(other) else NotImplemented

    def __rfloordiv__(self, other: object) -> DimLike:
        return floor_div(other, self) if is_dim(other) else NotImplemented

    def __mod__(self, other: object) -> DimLike:
        return self - floor_div(self, other) * other if is_dim(other) else NotImplemented

    def __rmod__(self, other: object) -> DimLike:
        return other - floor_div(other, self) * self if is_dim(other) else NotImplemented

    def evaluate(self, env: Mapping[str, int]) -> int:
        """Return the value where each name has the value that ``env`` gives it; KeyError for a missing name."""
        return sum(c * _product(_atom_value(a, env) for a in m) for m, c in self.terms)

    def substitute(self, env: Mapping[str, DimLike]) -> DimLike:
        """Return the expression with the names in ``env`` replaced."""
        return dim_sum([dim_product([coefficient, *(_substitute_atom(atom, env) for atom in monomial)])
                        for monomial, coefficient in self.terms])

    def names(self) -> frozenset[str]:
        """Return the named dims that occur."""
        if self._names is None:
            found: set[str] = set()
            for monomial, _ in self.terms:
                for atom in monomial:
                    if isinstance(atom, str):
                        found.add(atom)
                    else:
                        found.update(*(d.names() for d in atom if isinstance(d, Dim)))
            self._names = frozenset(found)
        return self._names

    @property
    def is_nonnegative(self) -> bool:
        """True if no coefficient is negative, so that the value is at least zero for all named dims at least zero."""
        return all(c >= 0 and all(_atom_nonnegative(a) for a in m) for m, c in self.terms)

    def __repr__(self) -> str:
        if not self._text:
            parts: list[str] = []
            for monomial, coefficient in self.terms:
                parts.append("-" if coefficient < 0 else "+" if parts else "")
                parts.append(_term_text(monomial, coefficient))
            self._text = "".join(parts)
        return self._text


DimLike = int | Dim


class _Unknown:
    """What a type rule returns for an extent that it cannot express; the graph puts a fresh named dim in its place.

    Whatever is computed from it is unknown again.
    """

    def _stay(self, *_: object) -> Any:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = _stay
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _stay

    def __repr__(self) -> str:
        return "?"


UNKNOWN: Dim = _Unknown()  # type: ignore[assignment]  # stands where a dim is not known yet


def is_dim(value: object) -> TypeGuard[DimLike]:
    """Return whether ``value`` is an integer or a Dim."""
    return isinstance(value, (int, np.integer, Dim)) and not isinstance(value, bool)


def _terms(value: Any) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(value, Dim):
        return value.terms
    return (((), int(value)),) if value else ()


def _from_terms(terms: Iterable[tuple[Monomial, int]]) -> DimLike:
    collected: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        collected[monomial] = collected.get(monomial, 0) + coefficient
    kept = {m: c for m, c in collected.items() if c}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    if len(kept) > DIM_TERMS:
        return UNKNOWN
    return _bounded(sorted(kept.items(), key=lambda item: (-len(item[0]), [_atom_key(a) for a in item[0]])))


def _bounded(terms: Sequence[tuple[Monomial, int]]) -> Dim:
    """Return the dim of canonical terms, or UNKNOWN if it is too large an expression."""
    dim = Dim(tuple(terms))
    small = dim.size <= DIM_TERMS and dim.depth <= MOST_NESTED and all(-_INT64 <= c < _INT64 for _, c in terms)
    return dim if small else UNKNOWN


def floor_div(a: Any, b: Any) -> DimLike:
    """Return the canonical form of ``a // b`` (towards minus infinity)."""
    if _Unknown in (a.__class__, b.__class__):
        return UNKNOWN
    if not isinstance(a, Dim) and not isinstance(b, Dim):
        return int(a) // int(b)
    if not isinstance(b, Dim):
        if b == 0:
            raise ValidationError("division of a dim by zero", code="dim")
        exact = tuple((m, c) for m, c in a.terms if c % b == 0)
        rest = _from_terms(tuple((m, c) for m, c in a.terms if c % b))
        whole = _from_terms(tuple((m, c // int(b)) for m, c in exact))
        if isinstance(rest, Dim):
            return whole + _bounded([(((rest, int(b)),), 1)])
        return whole + rest // int(b)
    if a == b:
        return 1
    if not isinstance(a, Dim) and a == 0:
        return 0
    if isinstance(a, Dim) and len(b.terms) == 1 and (quotient := _divide_by_monomial(a, b)) is not None:
        return quotient
    return _bounded([(((a, b),), 1)])


def _divide_by_monomial(a: Dim, b: Dim) -> DimLike | None:
    ((divisor, factor),) = b.terms
    quotient = []
    for monomial, coefficient in a.terms:
        left = list(monomial)
        for atom in divisor:
            if atom not in left:
                return None
            left.remove(atom)
        if coefficient % factor:
            return None
        quotient.append((tuple(left), coefficient // factor))
    return _from_terms(quotient)


def ceil_div(a: Any, b: Any) -> DimLike:
    """Return the canonical form of ``a / b`` rounded up."""
    return -floor_div(-a, b)


def _product(values: Iterable[int]) -> int:
    return functools.reduce(lambda a, b: a * b, values, 1)


def _atom_key(atom: Atom) -> tuple[int, str]:
    return (0, atom) if isinstance(atom, str) else (1, _atom_text(atom))


def _term_text(monomial: Monomial, coefficient: int) -> str:
    """Return a term without its sign."""
    alone = len(monomial) == 1 and coefficient == 1
    factors = [_atom_text(a) if alone or isinstance(a, str) else f"({_atom_text(a)})" for a in monomial]
    if not factors or abs(coefficient) != 1:
        factors.insert(0, str(abs(coefficient)))
    return "*".join(factors)


def _atom_text(atom: Atom) -> str:
    if isinstance(atom, str):
        return atom if _DIM_NAME.fullmatch(atom) else quote(atom)
    return "//".join(repr(d) if _stands_bare(d) else f"({d!r})" for d in atom)


def _stands_bare(dim: DimLike) -> bool:
    """Return whether a dim needs no parentheses next to ``//``."""
    if not isinstance(dim, Dim):
        return dim >= 0
    ((monomial, coefficient), *rest) = dim.terms
    return not rest and coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], str)


def _atom_value(atom: Atom, env: Mapping[str, int]) -> int:
    if isinstance(atom, str):
        return env[atom]
    top, bottom = (d.evaluate(env) if isinstance(d, Dim) else int(d) for d in atom)
    if bottom == 0:
        raise ValidationError(f"division by zero in the dim {atom!r}", code="dim")
    return top // bottom


def _substitute_atom(atom: Atom, env: Mapping[str, DimLike]) -> DimLike:
    if isinstance(atom, str):
        return env.get(atom, Dim.named(atom))
    top, bottom = (d.substitute(env) if isinstance(d, Dim) else d for d in atom)
    return floor_div(top, bottom)


def _atom_nonnegative(atom: Atom) -> bool:
    if isinstance(atom, str):
        return True
    return all(d.is_nonnegative if isinstance(d, Dim) else d >= 0 for d in atom)


_DIM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_DIM_TOKEN = re.compile(r"\s*(?:(?P<int>[0-9]{1,40})|(?P<name>[A-Za-z_][A-Za-z0-9_.]*)"
                        rf"|(?P<quoted>{QUOTED})|(?P<op>//|[-+*()]))")
_MOST_TOKENS = 8 * DIM_TERMS


def parse_dim(text: str) -> DimLike:
    """Parse what ``repr`` of a dim prints: names, integers, ``+ - * //`` and parentheses.

    Raises ValidationError for anything else, LimitError for an expression that is larger than any dim may be.
    """
    tokens = _dim_tokens(text)
    value, rest = _parse_sum(tokens, 0)
    if rest != len(tokens):
        raise ValidationError(f"cannot read the dim {text!r}", code="dim")
    if value is UNKNOWN:
        raise _too_large(text)
    return value


def _too_large(text: str) -> LimitError:
    return LimitError(f"the dim {safe_text(text, 40)} has more than {DIM_TERMS} terms and names, or "
                      f"divisions nested more than {MOST_NESTED} deep", code="dim_terms")


def _dim_tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _DIM_TOKEN.match(text, at)
        if match is None:
            raise ValidationError(f"cannot read the dim {text!r}", code="dim")
        if len(tokens) > _MOST_TOKENS:
            raise _too_large(text)
        kind = str(match.lastgroup)
        body = match.group(kind)
        tokens.append(("name", unquote(body)) if kind == "quoted" else (kind, body))
        at = match.end()
    return tokens


def _parse_sum(tokens: list[tuple[str, str]], at: int, depth: int = 0) -> tuple[DimLike, int]:
    negative = at < len(tokens) and tokens[at] == ("op", "-")
    value, at = _parse_product(tokens, at + negative, depth)
    parts = [-value if negative else value]
    while at < len(tokens) and tokens[at] in (("op", "+"), ("op", "-")):
        right, after = _parse_product(tokens, at + 1, depth)
        parts.append(right if tokens[at][1] == "+" else -right)
        at = after
    return dim_sum(parts), at


def _parse_product(tokens: list[tuple[str, str]], at: int, depth: int) -> tuple[DimLike, int]:
    value, at = _parse_atom(tokens, at, depth)
    while at < len(tokens) and tokens[at] in (("op", "*"), ("op", "//")):
        right, after = _parse_atom(tokens, at + 1, depth)
        value = value * right if tokens[at][1] == "*" else floor_div(value, right)
        at = after
    return value, at


def _parse_atom(tokens: list[tuple[str, str]], at: int, depth: int) -> tuple[DimLike, int]:
    if at >= len(tokens) or depth > 64:
        raise ValidationError("a dim ends too early or is nested too deeply", code="dim")
    kind, text = tokens[at]
    if kind == "int":
        return int(text), at + 1
    if kind == "name":
        return Dim.named(text), at + 1
    if text == "(":
        value, after = _parse_sum(tokens, at + 1, depth + 1)
        if after < len(tokens) and tokens[after] == ("op", ")"):
            return value, after + 1
    raise ValidationError(f"unexpected {text!r} in a dim", code="dim")


# ---- types ------------------------------------------------------------------------------------------------------------

Shape = tuple[DimLike, ...]


class Type(NamedTuple):
    """The type of a value: its dtype, and its shape or None where even the rank is unknown."""

    dtype: DType
    shape: Shape | None

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def is_static(self) -> bool:
        """True if every extent is a known integer."""
        if self.shape is None:
            return False
        for dim in self.shape:  # noqa: SIM110 - asked for a million times
            if not isinstance(dim, int):
                return False
        return True

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape as integers; ValidationError if it is not static."""
        if not self.is_static:
            raise ValidationError(f"the shape of {self!r} is not known before the run", code="shape")
        return self.shape  # type: ignore[return-value]

    @property
    def size(self) -> DimLike | None:
        """The number of elements, or None for an unknown rank."""
        return None if self.shape is None else dim_product(self.shape)

    @classmethod
    def read(cls, dtype: DType, shape: Shape | None) -> Type:
        """Return a type that a file tells. Raises ValidationError for a container with extents."""
        if dtype.element is not None and shape != ():
            raise ValidationError(f"{dtype.name} has no extents: its type is {dtype.short}[]", code="shape")
        return cls(dtype, shape)

    def with_shape(self, shape: Sequence[DimLike] | None) -> Type:
        """Return this type with another shape."""
        return Type(self.dtype, None if shape is None else tuple(shape))

    def with_dtype(self, dtype: DType) -> Type:
        """Return this type with another dtype."""
        return Type(dtype, self.shape)

    def __repr__(self) -> str:
        if self.shape is None:
            return f"{self.dtype.short}[*]"
        return f"{self.dtype.short}[{','.join(repr(d) for d in self.shape)}]"


def dim_sum(dims: Sequence[DimLike]) -> DimLike:
    """Return the sum of dims, in time linear in their number."""
    if any(d is UNKNOWN for d in dims):
        return UNKNOWN
    return dims[0] if len(dims) == 1 else _from_terms(term for d in dims for term in _terms(d))


def dim_product(dims: Iterable[DimLike]) -> DimLike:
    """Return the product of dims."""
    total: DimLike = 1
    for dim in dims:
        total = total * dim
    return total


def type_of(array: np.ndarray[Any, Any]) -> Type:
    """Return the static type of an array."""
    return Type(dtype_of(array.dtype), tuple(array.shape))


def broadcast_dims(a: DimLike, b: DimLike) -> DimLike:
    """Return the extent that two broadcast extents have together, UNKNOWN where only the run can tell."""
    if a is UNKNOWN or b is UNKNOWN:
        known = b if a is UNKNOWN else a
        return known if isinstance(known, int) and known != 1 else UNKNOWN
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, int):
        raise ValidationError(f"extents {a} and {b} do not broadcast", code="shape")
    if isinstance(a, int):
        return a
    return b if isinstance(b, int) else UNKNOWN


def broadcast_shapes(*shapes: Shape | None) -> Shape | None:
    """Return the broadcast of shapes, None if one of them has an unknown rank."""
    if any(s is None for s in shapes):
        return None
    if shapes and all(s == shapes[0] for s in shapes):
        return shapes[0]
    known = [s for s in shapes if s is not None]
    rank = max((len(s) for s in known), default=0)
    result: list[DimLike] = []
    for position in range(rank):
        extent: DimLike = 1
        for shape in known:
            at = position - rank + len(shape)
            extent = broadcast_dims(extent, shape[at]) if at >= 0 else extent
        result.append(extent)
    return tuple(result)


def merge_dims(a: DimLike, b: DimLike) -> DimLike:
    """Return the more precise of two extents that the standard forces to be equal; ValidationError if they conflict."""
    if a is UNKNOWN or b is UNKNOWN:
        return b if a is UNKNOWN else a
    if isinstance(a, int) and isinstance(b, int) and a != b:
        raise ValidationError(f"extents {a} and {b} must be equal", code="shape")
    return b if isinstance(b, int) else a


def merge_types(a: Type, b: Type) -> Type:
    """Return the more precise of two types of one value; ValidationError if they conflict."""
    if a == b:
        return a
    if a.dtype != b.dtype:
        raise ValidationError(f"types {a!r} and {b!r} conflict", code="dtype")
    if a.shape is None or b.shape is None:
        return a if b.shape is None else b
    if len(a.shape) != len(b.shape):
        raise ValidationError(f"types {a!r} and {b!r} have different ranks", code="shape")
    return Type(a.dtype, tuple(merge_dims(x, y) for x, y in zip(a.shape, b.shape, strict=True)))
