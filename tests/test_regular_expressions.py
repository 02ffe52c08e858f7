"""Patterns of RE2: against Python's where the two agree, against onnxruntime, and what is no pattern."""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx import TensorProto, helper

from flowgrad.ir.regular_expressions import Pattern, PatternError
from tests.onnx_models import info, onnxruntime_outputs

PARTS = ["a", "b", "1", ".", r"\d", r"\w", r"\s", "[ab]", "[^a]", "[a-c1-3]", r"\.", r"[\d_]", r"\b", "^", "$", "é", r"[^\w]", r"\W",
         "(?i:A)", "(?s:.)"]
REPEATS = ["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?", "+?"]


def made_up(rng: np.random.Generator, depth: int) -> str:
    kind = rng.random()
    if depth == 0 or kind < 0.35:
        return str(rng.choice(PARTS))
    inner = made_up(rng, depth - 1)
    if kind < 0.6:
        return inner + made_up(rng, depth - 1)
    if kind < 0.75:
        return f"(?:{inner}|{made_up(rng, depth - 1)})"
    return f"({inner}|)" if kind < 0.8 else f"(?:{inner}){rng.choice(REPEATS)}"


def test_patterns_that_python_reads_alike() -> None:
    rng = np.random.default_rng(5)
    seen = {True: 0, False: 0}
    for _ in range(600):
        pattern = made_up(rng, 4)
        theirs, mine = re.compile(pattern.replace("$", r"\Z"), re.ASCII), Pattern(pattern)
        for _ in range(12):
            text = "".join(rng.choice(list("ab1_ \n.é"), rng.integers(0, 6)))
            expected = theirs.fullmatch(text) is not None
            seen[expected] += 1
            assert mine.fullmatch(text) == expected, (pattern, text)
    assert min(seen.values()) > 500


ALONE = [
    (r"\Qa.b\E+", "a.bbb"), (r"\x41\x{42}\101", "ABA"), ("[[:alpha:]]+[[:^digit:]]", "abc"), (r"\pL+\p{Nd}\PL", "éA1-"),
    ("a{,2}", "a{,2}"), ("(?i)straße", "STRAßE"), ("(?P<x>a)(?<y>b)", "ab"), ("(?i-s:a.)", "Ab"), ("[]a]+", "]a"), ("[a-]+", "a-"),
    ("[^]]", "x"), ("a|", ""), ("(?m)^a$\n^b$", "a\nb"), ("{", "{"), ("x{2}?", "xx"), (r"\Q\E", ""), (r"\p{^Lu}[^\PL]", "1a"),
    (r"a\z", "a"), (r"\A\Ba*", ""), ("(?U)a+", "aa"), ("((?i)a)b", "Ab"),
]


@pytest.mark.parametrize(("pattern", "text"), ALONE)
def test_patterns_of_re2_match_as_in_onnxruntime(pattern: str, text: str) -> None:
    others = [text + "x", text.swapcase(), "a\n", ""]
    nodes = [helper.make_node("RegexFullMatch", ["x"], ["y"], pattern=pattern)]
    graph = helper.make_graph(nodes, "g", [info("x", [None], TensorProto.STRING)], [info("y", [None], TensorProto.BOOL)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    texts = np.array([text, *others], object)
    (expected,) = onnxruntime_outputs(proto, {"x": texts})
    assert expected[0]
    assert [Pattern(pattern).fullmatch(t) for t in texts] == expected.tolist()


@pytest.mark.parametrize("pattern", [
    "(", "a)", "[", "*", "a**", "(?=a)", "(?<=a)", r"\1", "(?P=x)", "(?>a)", "a++", "[[:foo:]]", r"\p{Greek}", r"\pX", "a{1001}",
    "a{2,1}", r"\Z", r"\C", "(?P<n", "\\", "[b-a]", "((a{1000}){1000}){1000}", "(" * 200 + ")" * 200, "(?x:a)", r"\x{110000}", "[\\",
])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(PatternError):
        Pattern(pattern)


def test_time_is_linear() -> None:
    """With backtracking each of these takes longer than the age of the universe."""
    assert not Pattern("(a+)+$").fullmatch("a" * 5000 + "b")
    assert not Pattern("(a|a)*b").fullmatch("a" * 5000)
    assert Pattern("(a?){500}a{500}").fullmatch("a" * 600)


def test_what_is_remembered_does_not_grow_without_end() -> None:
    pattern = Pattern(".*b")
    assert pattern.fullmatch("".join(map(chr, range(0x20, 0xD000))) + "b")
    assert len(pattern._start.steps) <= 2**14
