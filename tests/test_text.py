"""The text form: what it looks like, that it reads back to the same graph, and how it refuses."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
from hypothesis import given, settings

from flowgrad.ir.builder import Builder
from flowgrad.ir.compare import same_graph
from flowgrad.ir.errors import FlowgradError, LimitError, LoadError, UnsupportedError, ValidationError
from flowgrad.ir.graph import Graph, same_array
from flowgrad.ir.limits import Limits
from flowgrad.ir.literals import array_of, bare_dtype, elements, literal
from flowgrad.ir.text import format_graph, large_constants, parse_graph
from flowgrad.ir.types import FLOAT32, Dim, Type, dtype_of
from flowgrad.ir.verify import verify
from tests import ir_graphs
from tests.op_cases import Case, all_cases

MLP = """\
graph @mlp (%x: f32[N,4], %y_bar: f32[N,3])
    -> (%y: f32[N,3], %y_grad = %y_mul: f32[N,3])
    params (%w1: f32[4,3] = [[1.0,2.0,3.0],[0.5,-0.0,inf],[nan,1e-20,0.1],[0.0,0.0,0.0]])
    opset 28
{
  %y: f32[N,3] = MatMul(%x, %w1)
  %y_mul: f32[N,3] = Mul(%y_bar, %y)                              from adjoint(%y)
  %y_reduce_sum: f32[N,1] = ReduceSum(%y_mul, [-1]) {keepdims=1}  from adjoint(%y)
  %y_mul_1: f32[N,3] = Mul(%y, %y_reduce_sum)                     from adjoint(%y)
}
"""


def wrapped(body: str, header: str = "(%x: f32[2]) -> ()") -> str:
    return f"graph @g {header} {{\n{textwrap.indent(body, '  ')}\n}}\n"


def test_text_of_the_specification_prints_as_it_was_read() -> None:
    graph = parse_graph(MLP)
    verify(graph)
    assert format_graph(graph) == MLP
    assert [e.name for e in graph.output_entries] == ["y", "y_grad"]
    assert graph.origins[graph.value("y_mul").producer.origin].pass_name == "adjoint"


def assert_reads_back(graph: Graph) -> str:
    """The text of ``graph`` brings it back, and is returned."""
    verify(graph)
    text = format_graph(graph)
    again = parse_graph(text, large_constants(graph))
    verify(again)
    assert same_graph(graph, again) is None
    assert format_graph(again) == text
    return text


@pytest.mark.parametrize("name", ir_graphs.SAMPLES)
def test_samples_read_back(name: str) -> None:
    assert_reads_back(ir_graphs.SAMPLES[name]())


@settings(deadline=None, max_examples=60)
@given(ir_graphs.graphs())
def test_random_graphs_read_back(graph: Graph) -> None:
    text = assert_reads_back(graph)
    assert all(c == "\n" or c.isprintable() for c in text)


@pytest.mark.parametrize("case", all_cases(), ids=lambda c: c.id)
def test_every_operator_reads_back(case: Case) -> None:
    for symbolic in {False, case.symbolic}:
        graph, _ = case.graph(case.arrays(), symbolic)
        assert_reads_back(graph)


@pytest.mark.parametrize("array", ir_graphs.EVERY_DTYPE, ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_elements_read_back_to_the_bit(array: np.ndarray) -> None:
    graph = Graph("g")
    graph.add_output(graph.add_constant(array, "c"))
    assert same_array(parse_graph(format_graph(graph)).value("c").producer.data, array)  # type: ignore[arg-type]


@pytest.mark.parametrize(("array", "text"), [
    (np.array([-1]), "[-1]"), (np.float32(0), "0.0"), (np.int64(1), "1"), (np.bool_(True), "true"),
    (np.float64(0.5), "f64(0.5)"), (np.array([1, 2], np.int32), "i32([1,2])"), (np.zeros(0, np.int64), "[]"),
    (np.zeros(0, np.float32), "f32([])"), (np.zeros((2, 0), np.float32), "f32[2,0]([])"), (np.float32("-0"), "-0.0"),
    (np.array([0x7FC00001], np.uint32).view(np.float32), "f32([0x7fc00001])"), (np.float32(np.nan), "nan"),
])
def test_literals_look_like_this(array: np.ndarray, text: str) -> None:
    assert literal(np.asarray(array)) == text


def test_elements_of_mixed_kinds_have_no_dtype() -> None:
    assert bare_dtype(["1", "2.0"]) is None
    assert bare_dtype(["1.0", "inf"]) is FLOAT32
    assert elements(np.array([["a"], ["b"]], object)) == '[["a"],["b"]]'


@pytest.mark.parametrize(("texts", "dtype"), [
    (["300"], "uint8"), (["-1"], "uint4"), (["8"], "int4"), (["1.5"], "int64"), (["x"], "float32"), (["2"], "bool"),
    (["0x00"], "float32"), (["1.0"], "complex64"), (["1"], "string"), (['"\\q"'], "string"),
])
def test_elements_outside_their_dtype_are_refused(texts: list[str], dtype: str) -> None:
    with pytest.raises(ValidationError):
        array_of(texts, (len(texts),), dtype_of(dtype))


def test_large_constants_need_their_data() -> None:
    graph = ir_graphs.mlp()
    text = format_graph(graph)
    data = next(iter(large_constants(graph).values()))
    assert "<blake2b:" in text
    with pytest.raises(LoadError, match="data="):
        parse_graph(text)
    with pytest.raises(LoadError, match="not the one"):
        parse_graph(text, {"fc1/weight": data + 1})
    assert same_graph(parse_graph(text, {"fc1/weight": data}), graph) is None


def test_header_constants_without_data_take_it_from_the_caller() -> None:
    text = "graph @g () -> (%w: f32[2]) params (%w: f32[2]) {}"
    assert parse_graph(text, {"w": np.array([1, 2], np.float32)}).value("w").producer.role == "parameter"
    for wrong in (np.array([1], np.float32), np.array([1.0, 2.0])):
        with pytest.raises(LoadError, match="expected f32"):
            parse_graph(text, {"w": wrong})


def test_fresh_dims_after_reading_are_fresh() -> None:
    graph = parse_graph("graph @g (%x: f32[_d7,(_d12+1)//2]) -> () {}")
    assert graph.fresh_dim() == Dim.named("_d13")


def test_comments_and_line_breaks_do_not_matter() -> None:
    text = "# a comment\ngraph @g\n(%x: f32[2] # here\n) -> (%y: f32[2]) {%y: f32[2]\n= Neg(\n%x) }"
    assert format_graph(parse_graph(text)).count("\n") == 6


def test_attributes_of_every_kind_read_back() -> None:
    graph = Graph("g")
    x = graph.add_input("x", Type(FLOAT32, (2,)))
    attributes = {"i": -3, "f": 0.1, "e": 1e300, "n": float("-nan"), "z": -0.0, "s": 'a"\n\x00', "b": b"\x00\"\\",
                  "ints": (1, 2), "none": (), "floats": (1.0, 1e-7), "strings": ("", "x"), "blobs": (b"",),
                  "array": np.array([[1], [2]]), "empty": np.zeros((0, 2), np.float32), "odd name": 1,
                  "words": np.array(["a"], object)}
    graph.add_node("Neg", [x], [("y", x.type)], attributes)
    again = parse_graph(format_graph(graph))
    assert same_graph(graph, again) is None
    assert format_graph(again) == format_graph(graph)


@pytest.mark.parametrize(("body", "message", "place"), [
    ("%y: f32[2] = Neg(%z)", "before it is defined", "line 2, column 20"),
    ("%y: f32[2] = Neg(%x", "expected", "line 3, column 1"),
    ("%y: f33[2] = Neg(%x)", "no element type 'f33'", "line 2, column 7"),
    ("%y: f32[2 = Neg(%x)", "expected a type", "line 2, column 7"),
    ("%y: f32[N*] = Neg(%x)", "dim", "line 2, column 7"),
    ("%x: f32[2] = Neg(%x)", "two values", "line 2, column 3"),
    ("%y: f32[2] = Neg(%x) {a=1, a=2}", "given twice", "line 2, column 31"),
    ("%y: f32[2] = Add(%x, [1, 2.0])", "differ in kind", "line 2, column 24"),
    ("%y: f32[2] = Add(%x, [[1.0], 2.0])", "equally deep", "line 2, column 32"),
    ("%y: f32[2] = Add(%x, [[1.0], [2.0, 3.0]])", "equally long", "line 2"),
    ("%y: f32[2] = Add(%x, u8(300))", "outside 0 to 255", "line 2"),
    ("%y: f32[2] = Add(%x, f32[2](1.0))", "without elements", "line 2"),
    ("%y: f32[2] = Add(%x, \"a\")", "need", "line 2"),
    ("%y: f32[2] = Neg(%x) ~", "cannot read '~", "line 2, column 24"),
    ("%y: f32[2] = Neg(%x) {a=\"\\q\"}", "unknown escape", "line 2"),
    ("%y: f32[2] = Neg(%x) from adjoint", "expected '('", "line 3, column 1"),
    ("%y: f32[-1] = Neg(%x)", "negative", "line 2, column 7"),
    ("%y: f32[] = Neg(%x) {a=-0xzz}", "expected", "line 2"),
])
def test_errors_say_line_and_column(body: str, message: str, place: str) -> None:
    with pytest.raises((LoadError, ValidationError), match=message.replace("(", r"\(")) as caught:
        parse_graph(wrapped(body))
    assert caught.value.where.startswith(place)


@pytest.mark.parametrize(("text", "message"), [
    ("", "expected 'graph'"), ("graph @g () -> () {} graph", "expected the end"),
    ("graph @g () -> (%y: f32[2]) {}", "nothing computes"),
    ("graph @g (%x: f32[2]) -> (%x: f32[3]) {}", "announced"), ("graph @g () -> () opset 12 {}", "opset 12"),
    ("graph @g () -> () params (%w: f32[2] = [1.0]) {}", "has the shape"),
    ("graph @g () -> () params (%w: f32[N] = [1.0]) {}", "not known before the run"),
])
def test_headers_that_do_not_hold_are_refused(text: str, message: str) -> None:
    with pytest.raises((LoadError, ValidationError), match=message):
        parse_graph(text)


def test_unknown_operator_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="did you mean 'Softmax'"):
        parse_graph(wrapped("%y: f32[2] = Sotfmax(%x)"))


@pytest.mark.parametrize(("limits", "text"), [
    (Limits(file_bytes=10), MLP), (Limits(nodes=3), MLP), (Limits(values=6), MLP), (Limits(rank=1), MLP),
    (Limits(dim=3), MLP), (Limits(name_bytes=11), MLP), (Limits(attributes=0), MLP),
    (Limits(string_bytes=2), wrapped('%y: f32[2] = Neg(%x) metadata {"k"="v"}')),
])
def test_limits_hold_in_the_text_form(limits: Limits, text: str) -> None:
    with pytest.raises(LimitError):
        parse_graph(text, limits=limits)


def test_depth_of_subgraphs_is_limited() -> None:
    opening = "graph @g () -> () { _ = If(true) then_branch = "
    with pytest.raises(LimitError, match="depth is 65"):
        parse_graph(opening * 100)


def test_every_truncation_is_a_typed_error() -> None:
    for length in range(len(MLP) - 2):
        with pytest.raises(FlowgradError):
            parse_graph(MLP[:length])


def test_every_removed_character_is_read_or_refused() -> None:
    for at in range(len(MLP)):
        try:
            parse_graph(MLP[:at] + MLP[at + 1 :])
        except FlowgradError as error:
            assert error.where


def test_long_graphs_take_no_stack() -> None:
    graph = ir_graphs.chain(20_000)
    again = parse_graph(format_graph(graph))
    assert same_graph(graph, again) is None


def test_builder_made_names_are_quoted_where_needed() -> None:
    graph = Graph("a graph")
    x = graph.add_input("/fc1/Add", Type(FLOAT32, (Dim.named("batch size"),)))
    Builder(graph).add_node("Neg", [x], outputs=["0"])
    text = format_graph(graph)
    assert '%"/fc1/Add": f32["batch size"]' in text
    assert "%0: f32" in text
    assert same_graph(parse_graph(text), graph) is None
