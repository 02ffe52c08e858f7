"""Dtypes, dims and types: the algebra of dims above all."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from flowgrad.ir.errors import InputError, LimitError, ValidationError
from flowgrad.ir.limits import DIM_TERMS
from flowgrad.ir.types import (
    FLOAT32,
    INT64,
    STRING,
    UNKNOWN,
    Dim,
    DimLike,
    Type,
    broadcast_dims,
    broadcast_shapes,
    ceil_div,
    dim_product,
    dim_sum,
    dtype_of,
    floor_div,
    is_dim,
    merge_dims,
    merge_types,
    parse_dim,
    type_of,
)

N, M = Dim.named("N"), Dim.named("M")
NAMES = ("N", "M", "batch size")
ENVIRONMENTS = [dict(zip(NAMES, values, strict=True)) for values in itertools.product((1, 2, 7), (3, 5), (1, 4))]

Pair = tuple[DimLike, "list[int]"]  # an expression, and its value in every environment


def leaves() -> st.SearchStrategy[Pair]:
    named = st.sampled_from(NAMES).map(lambda n: (Dim.named(n), [env[n] for env in ENVIRONMENTS]))
    return st.one_of(named, st.integers(-6, 6).map(lambda i: (i, [i] * len(ENVIRONMENTS))))


def combined(children: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.tuples(st.sampled_from("+-*/%"), children, children).map(combine)


def combine(parts: tuple[str, Pair, Pair]) -> Pair:
    sign, (a, x), (b, y) = parts
    if sign == "+":
        return a + b, [i + j for i, j in zip(x, y, strict=True)]
    if sign == "-":
        return a - b, [i - j for i, j in zip(x, y, strict=True)]
    if sign == "*":
        return a * b, [i * j for i, j in zip(x, y, strict=True)]
    if 0 in y:
        return a, x
    if sign == "%":
        return a % b, [i % j for i, j in zip(x, y, strict=True)]
    return floor_div(a, b), [i // j for i, j in zip(x, y, strict=True)]


EXPRESSIONS = st.recursive(leaves(), combined, max_leaves=7)


def value(d: DimLike, env: dict[str, int]) -> int:
    return d.evaluate(env) if isinstance(d, Dim) else d


@settings(deadline=None, max_examples=300)
@given(EXPRESSIONS)
def test_dims_agree_with_python_integers(pair: Pair) -> None:
    expression, expected = pair
    assert [value(expression, env) for env in ENVIRONMENTS] == expected


@settings(deadline=None, max_examples=300)
@given(EXPRESSIONS)
def test_dims_read_back(pair: Pair) -> None:
    assert parse_dim(repr(pair[0])) == pair[0]


@settings(deadline=None, max_examples=200)
@given(EXPRESSIONS, EXPRESSIONS)
def test_substitution_agrees_with_evaluation(pair: Pair, inner: Pair) -> None:
    expression = pair[0]
    if not isinstance(expression, Dim):
        return
    for env in ENVIRONMENTS:
        at = {**env, "N": value(inner[0], env)}
        try:
            expected = expression.evaluate(at)
        except ValidationError:
            continue
        replaced = expression.substitute({"N": value(inner[0], env)})
        assert value(replaced, env) == expected


@settings(deadline=None, max_examples=200)
@given(EXPRESSIONS, EXPRESSIONS)
def test_equal_polynomials_are_equal(a: Pair, b: Pair) -> None:
    x, y = a[0], b[0]
    assert x + y == y + x
    assert x * y == y * x
    assert (x + y) - y == x
    assert hash(x + y) == hash(y + x)
    assert x * (y + 1) == x * y + x


@given(EXPRESSIONS)
def test_nonnegative_dims_are_nonnegative(pair: Pair) -> None:
    if isinstance(pair[0], Dim) and pair[0].is_nonnegative:
        assert min(pair[1]) >= 0


@pytest.mark.parametrize(("dim", "text"), [
    (N // 2 + 1, "N//2+1"), (N * (M // 2), "N*(M//2)"), (2 * (N // 2), "2*(N//2)"), (-(N // 2), "-(N//2)"),
    ((N + 1) // 2, "(N+1)//2"), ((2 * N + 1) // 2, "N"), (4 * N // 2, "2*N"), (N * M // N, "M"),
    (N - M, "-M+N"), (Dim.named("a b") * 2, '2*"a b"'), (7 // N, "7//N"), (-N // 2, "(-N)//2"),
])
def test_dims_print_like_this(dim: DimLike, text: str) -> None:
    assert repr(dim) == text
    assert parse_dim(text) == dim


def test_arithmetic_that_ends_in_an_integer_gives_one() -> None:
    assert N - N == 0 and isinstance(N - N, int)
    assert N // N == 1
    assert ceil_div(7, 2) == 4
    assert value(ceil_div(N, 2), {"N": 5}) == 3
    assert N % 1 == 0


def test_names_are_found_everywhere() -> None:
    assert (7 // N).names() == {"N"}  # type: ignore[union-attr]
    assert ((N + 1) // (M * 2) * Dim.named("K")).names() == {"N", "M", "K"}  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["", "N+", "N N", "(N", "N//0", "é", "N**2", '"a', "1.5", "(" * 70 + "N" + ")" * 70,
                                  "9" * 41, "N)"])
def test_what_is_no_dim_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        parse_dim(text)


@pytest.mark.parametrize("text", [
    "*".join(f"(a{i}+b{i})" for i in range(40)), "+".join(["N"] * 6000), "+".join(f"a{i}" for i in range(5000)),
    "*".join(["N"] * 300), "N*" + "*".join(["9" * 19] * 5), "(" * 60 + "N" + "//2+1)" * 60,
], ids=["product", "sum", "names", "power", "coefficient", "division"])
def test_dims_that_explode_are_refused(text: str) -> None:
    with pytest.raises(LimitError, match="terms") as caught:
        parse_dim(text)
    assert caught.value.code == "dim_terms"


def test_arithmetic_that_explodes_ends_in_an_unknown_extent() -> None:
    square = nested = outer = N
    for step in range(60):
        square = square * square  # type: ignore[assignment]
        nested = (nested + 1) // 2 + (nested + 1) // 3  # type: ignore[assignment]
        outer = outer * (Dim.named(f"a{step}") + 1)  # type: ignore[assignment]
    assert square is nested is outer is UNKNOWN
    assert dim_sum([Dim.named(f"a{i}") for i in range(DIM_TERMS + 1)]) is UNKNOWN
    assert dim_product([N] * DIM_TERMS) is UNKNOWN
    assert (N * 2**62) * 2 is UNKNOWN


def test_what_is_computed_from_an_unknown_extent_is_unknown() -> None:
    assert all(d is UNKNOWN for d in (UNKNOWN + 1, 1 + UNKNOWN, UNKNOWN - N, N - UNKNOWN, UNKNOWN * N, N * UNKNOWN,
                                      -UNKNOWN, UNKNOWN // 2, N // UNKNOWN, UNKNOWN % 2, 7 % UNKNOWN,
                                      floor_div(UNKNOWN, 2), ceil_div(3, UNKNOWN), dim_sum([1, UNKNOWN])))
    with pytest.raises(TypeError):
        assert UNKNOWN < 1  # type: ignore[operator]


def test_size_and_depth_of_a_dim() -> None:
    assert (N.size, N.depth) == (2, 0)
    halves = N // 2 + (M * N + 1) // 3
    assert isinstance(halves, Dim) and halves.depth == 1
    assert halves.size == 2 * 2 + N.size + (M * N + 1).size == 10  # type: ignore[union-attr]


def test_division_by_a_dim_that_turns_out_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="zero"):
        (N // M).evaluate({"N": 1, "M": 0})  # type: ignore[union-attr]


def test_a_missing_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        N.evaluate({})


def test_what_counts_as_a_dim() -> None:
    assert is_dim(3) and is_dim(np.int64(3)) and is_dim(N)
    assert not is_dim(True) and not is_dim(3.0) and not is_dim("N")
    with pytest.raises(TypeError):
        N + 0.5


def test_dtypes_are_found_by_every_name() -> None:
    for what in ("float32", "f32", 1, np.float32, np.dtype("f4"), np.dtype(">f4"), FLOAT32):
        assert dtype_of(what) is FLOAT32
    assert dtype_of(np.dtype("<U3")) is STRING
    for wrong in ("float", 99, None, np.datetime64):
        with pytest.raises(InputError):
            dtype_of(wrong)


def test_type_facts() -> None:
    symbolic = Type(FLOAT32, (N, 3))
    assert repr(symbolic) == "f32[N,3]" and repr(Type(INT64, None)) == "i64[*]" and repr(Type(INT64, ())) == "i64[]"
    assert symbolic.rank == 2 and not symbolic.is_static and symbolic.size == N * 3
    assert type_of(np.zeros((2, 0), np.int64)).static_shape == (2, 0)
    with pytest.raises(ValidationError):
        assert symbolic.static_shape


@pytest.mark.parametrize(("a", "b", "expected"), [
    (1, 5, 5), (5, 1, 5), (0, 1, 0), (N, N, N), (N, 1, N), (1, N, N), (N, 5, 5), (5, N, 5), (N, M, UNKNOWN),
    (UNKNOWN, 5, 5), (UNKNOWN, 1, UNKNOWN), (N, UNKNOWN, UNKNOWN), (0, N, 0),
])
def test_extents_broadcast(a: DimLike, b: DimLike, expected: DimLike) -> None:
    assert broadcast_dims(a, b) is expected or broadcast_dims(a, b) == expected


def test_shapes_broadcast_like_numpy() -> None:
    for a, b in itertools.product([(), (1,), (3,), (2, 1), (2, 3), (0, 3), (4, 2, 1)], repeat=2):
        try:
            expected = np.broadcast_shapes(a, b)
        except ValueError:
            with pytest.raises(ValidationError):
                broadcast_shapes(a, b)
            continue
        assert broadcast_shapes(a, b) == expected
    assert broadcast_shapes((2,), None) is None


def test_types_merge_to_the_more_precise() -> None:
    assert merge_dims(N, 3) == 3 and merge_dims(3, N) == 3 and merge_dims(UNKNOWN, N) == N
    assert merge_types(Type(FLOAT32, None), Type(FLOAT32, (3,))) == Type(FLOAT32, (3,))
    assert merge_types(Type(FLOAT32, (N, 4)), Type(FLOAT32, (3, M))) == Type(FLOAT32, (3, 4))
    for a, b in ((Type(FLOAT32, (3,)), Type(FLOAT32, (4,))), (Type(FLOAT32, (3,)), Type(INT64, (3,))),
                 (Type(FLOAT32, (3,)), Type(FLOAT32, (3, 1)))):
        with pytest.raises(ValidationError):
            merge_types(a, b)
