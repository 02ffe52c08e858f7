"""What operators declare about themselves is true, and nothing about an operator is told elsewhere."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import defs

from flowgrad.exchange.lowering import lowered
from flowgrad.exchange.writer import write_onnx
from flowgrad.ir import OPSET
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import INITIALIZER, Array, Graph, Node, Value
from flowgrad.ir.infer import draft, infer
from flowgrad.ir.ops.registry import OpDef, Trait, all_ops, op, opdef
from flowgrad.ir.ops.splitting import ELEMENTS
from flowgrad.ir.registry import scoped
from flowgrad.ir.types import FLOAT32, Type, merge_types, type_of
from flowgrad.passes.parameters import candidates
from flowgrad.passes.precision import converted
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.runtime.splits import Cuts, cuts_of
from tests.op_cases import Case, all_cases, const, fixed, normal

CASES = all_cases()
STANDARD = [d for d in all_ops().values() if not d.domain]


def ops_with(accept: Callable[[OpDef], Any]) -> pytest.MarkDecorator:
    chosen = [d for d in all_ops().values() if accept(d)]
    return pytest.mark.parametrize("definition", chosen, ids=[d.name for d in chosen])


def cases_of(accept: Callable[[OpDef], Any]) -> pytest.MarkDecorator:
    chosen = [c for c in CASES if accept(opdef(c.op))]
    return pytest.mark.parametrize("case", chosen, ids=[c.id for c in chosen])


def schema_of(definition: OpDef, opset: int = OPSET) -> Any:
    return defs.get_schema(definition.name, opset, "")


# ---- linear: what selections rely on --------------------------------------------------------------------------------------


@cases_of(lambda d: Trait.LINEAR in d.traits and Trait.ELEMENTWISE not in d.traits and d.support_rule is None)
def test_linear_operators_without_a_support_rule_have_no_negative_coefficients(case: Case) -> None:
    """What ones in place of a mask make is other than zero only then wherever something is selected."""
    arrays = [a if a is None or a.dtype.kind != "f" else np.abs(a) for a in case.arrays()]
    graph, _ = case.graph(arrays)
    for found in evaluate(graph, case.feeds(arrays)).values():
        assert found.dtype.kind != "f" or (found >= 0).all()


# ---- extents: what type rules read --------------------------------------------------------------------------------------


class Watched(Value):
    """A twin of a value that notes when a type rule asks what it holds."""

    __slots__ = ("log", "real", "slot")

    def __init__(self, real: Value, slot: int, log: set[int]) -> None:
        self.real, self.slot, self.log = real, slot, log
        super().__init__(real.name, real.type, real.producer, real.index)

    @property
    def symbolic(self) -> Array | None:
        self.log.add(self.slot)
        return self.real.symbolic

    @symbolic.setter
    def symbolic(self, array: Array | None) -> None:
        pass

    @property
    def constant(self) -> Array | None:
        self.log.add(self.slot)
        return self.real.constant


def slots_read(node: Node) -> set[int]:
    """Return the inputs whose values the type rule of ``node`` asks for."""
    log: set[int] = set()
    twins = [None if v is None else Watched(v, i, log) for i, v in enumerate(node.inputs)]
    assert by_rule(node, twins) == infer(node), "types that are known from those of the inputs are what the rule says"
    return log


def by_rule(node: Node, inputs: Sequence[Value | None]) -> list[Type | None]:
    """Return what the type rule of the op of ``node`` says of ``inputs``, asked anew."""
    rule = opdef(node.op).type_rule
    assert rule is not None
    found = rule(draft(node.op, inputs, node.attributes, captures=node.captures, subgraphs=node.subgraphs,
                       count=len(node.outputs)))
    return [found] if isinstance(found, Type) else list(found)


def forms(case: Case) -> list[Case]:
    """Return the case with its inputs fed and constant as it has them, and as many as possible fed, and constant."""
    found = [case]
    for constant in (False, True):
        form = replace(case, inputs=[s and replace(s, constant=constant) for s in case.inputs])
        try:
            form.graph(form.arrays())
        except ValidationError:
            continue  # without the constant nobody knows the number of outputs
        found.append(form)
    return found


@cache
def all_slots_read() -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for case in CASES:
        for form in forms(case):
            for symbolic in (False, True) if case.symbolic else (False,):
                node = form.graph(form.arrays(), symbolic)[1]
                found.setdefault(case.op, set()).update(slots_read(node))
    return found


@ops_with(lambda d: d.inputs)
def test_extents_are_what_the_type_rule_reads(definition: OpDef) -> None:
    """A condition is no number: what it decides is whether the number of iterations is the limit."""
    read = all_slots_read()[definition.name]
    assert definition.extents <= read
    assert read <= definition.extents | definition.deciding


# ---- split: pieces of work ----------------------------------------------------------------------------------------------


def pieces(node: Node, arrays: Sequence[Array | None], cuts: Cuts) -> Array:
    """Return the output put together from the results on the pieces; every element must come from exactly one."""
    definition, y = opdef(node.op), node.output()
    whole = np.zeros(y.type.static_shape, y.type.dtype.numpy)
    count = np.zeros(whole.shape, np.int8)
    for *inputs, output in cuts:
        part = Graph()
        given = [None if a is None else a if cut is None else a[cut] for a, cut in zip(arrays, inputs, strict=True)]
        values = [None if a is None else part.add_input(f"x{i}", type_of(a)) for i, a in enumerate(given)]
        made = Builder(part).add_node(definition.name, values, node.attributes, types=[None])
        part.add_output(made.output(), "y")
        where = (...,) if output is None else output
        whole[where] = evaluate(part, {f"x{i}": a for i, a in enumerate(given) if a is not None})["y"]
        count[where] += 1
    assert (count == 1).all(), "an element is computed twice or not at all"
    return whole


def enlarged(case: Case, planes: int) -> Case:
    """Return an elementwise case with two more axes in front: ``planes``, and as many rows as make work for threads.

    Every row is the old array rolled along; what was broadcast stays, except the first input if all were.
    """
    arrays = case.arrays()
    shape = case.graph(arrays)[1].output().type.static_shape
    if arrays[0] is not None and not any(a is not None and a.shape == shape for a in arrays):
        arrays[0] = np.broadcast_to(arrays[0], shape)
    rows = 1 + 5 * ELEMENTS // (planes * int(np.prod(shape)))

    def more(a: Array) -> Array:
        flat = a.reshape(-1)
        places = (np.arange(planes * rows)[:, None] + np.arange(flat.size)) % flat.size
        return np.asarray(flat[places].reshape(planes, rows, *shape))

    return replace(case, inputs=[None if a is None else fixed(more(a) if a.shape == shape else a) for a in arrays])


def elementwise_rows() -> list[Case]:
    """Return the first case of each elementwise operator with a result that has elements and axes."""
    found: dict[str, Case] = {}
    for case in CASES:
        if Trait.ELEMENTWISE in opdef(case.op).traits:
            shape = case.graph(case.arrays())[1].output().type.static_shape
            if shape and 0 not in shape:
                found.setdefault(case.op, case)
    return list(found.values())


ROWS = elementwise_rows()


def test_every_elementwise_operator_has_work_to_cut() -> None:
    assert {c.op for c in ROWS} == {d.name for d in all_ops().values() if Trait.ELEMENTWISE in d.traits}


@pytest.mark.parametrize("planes", [1, 3], ids=["rows", "planes"])
@pytest.mark.parametrize("case", ROWS, ids=[c.id for c in ROWS])
def test_elementwise_work_in_pieces_is_the_same_work(case: Case, planes: int) -> None:
    large = enlarged(case, planes)
    arrays = large.arrays()
    graph, node = large.graph(arrays)
    cuts = cuts_of(node, opdef(case.op))
    if not cuts:
        assert any(v is None for v in node.inputs) or opdef(case.op).special & {"rng", "work"}
        return
    whole = evaluate(graph, large.feeds(arrays))[node.output().name]
    assert_same_bits(pieces(node, arrays, cuts), whole)
    for threads in (1, 3):
        assert_same_bits(NumpyProgram(graph, threads=threads).run(large.feeds(arrays))[node.output().name], whole)


def assert_same_bits(got: Array, expected: Array) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    if got.dtype == object:
        assert np.array_equal(got, expected)
    else:
        assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(expected).tobytes()


def product(name: str, *shapes: tuple[int, ...], **attributes: Any) -> Case:
    """Return a product of the given shapes in float32, large enough to be cut."""
    label = "-".join("x".join(map(str, s)) for s in shapes) + "".join(f"-{k}" for k in attributes)
    return Case(name, [normal(*s, dtype="float32") for s in shapes], attributes, name=label)


def gradient(shape: tuple[int, ...], w: tuple[int, ...], x: tuple[int, ...], **attributes: Any) -> Case:
    return Case("ConvInputGrad", [normal(*shape, dtype="float32"), normal(*w, dtype="float32"), const(x, "int64")], attributes,
                name=f"{x}-{sorted(attributes)}")


PRODUCTS = [
    product("MatMul", (1100, 64), (64, 512)),
    product("MatMul", (300, 128), (128, 1000)),
    product("MatMul", (9, 128, 256), (9, 256, 128)),
    product("MatMul", (1100, 8, 64), (64, 100)),
    product("MatMul", (5, 1, 256, 128), (7, 128, 64)),
    product("MatMul", (1, 7, 256, 128), (7, 128, 200)),
    product("MatMul", (256, 128), (7, 128, 200)),
    product("MatMul", (3, 1000, 8), (3, 8, 1500)),
    *(product("Gemm", *shapes, *bias, transA=a, transB=b) for a in (0, 1) for b in (0, 1)
      for shapes in (((1100, 64)[:: -1 if a else 1], (64, 512)[:: -1 if b else 1]),)
      for bias in ((), ((1100, 512),), ((512,),), ((1100, 1),), ((),))),
    *(product("Gemm", (300, 128)[:: -1 if a else 1], (128, 1000)[:: -1 if b else 1], (1000,), transA=a, transB=b, alpha=0.5)
      for a in (0, 1) for b in (0, 1)),
    product("Conv", (8, 16, 32, 32), (32, 16, 3, 3), (32,)),
    product("Conv", (3, 16, 64, 64), (32, 8, 3, 3), group=2, pads=(1, 1, 1, 1)),
    product("Conv", (1, 16, 120, 120), (32, 16, 3, 3), (32,)),
    product("Conv", (6, 64, 40, 40), (64, 64, 1, 1)),
    product("Conv", (64, 8, 400), (64, 8, 9), strides=(2,)),
    gradient((8, 32, 30, 30), (32, 16, 3, 3), (8, 16, 32, 32)),
    gradient((3, 32, 64, 64), (32, 8, 3, 3), (3, 16, 64, 64), group=2, pads=(1, 1, 1, 1)),
    gradient((6, 64, 40, 40), (64, 64, 1, 1), (6, 64, 40, 40)),
]


@pytest.mark.parametrize("case", PRODUCTS, ids=[c.id for c in PRODUCTS])
def test_products_in_pieces_are_the_same_products(case: Case) -> None:
    arrays = case.arrays()
    graph, node = case.graph(arrays)
    name, feeds = node.output().name, case.feeds(arrays)
    cuts = cuts_of(node, opdef(case.op))
    whole = evaluate(graph, feeds)[name]
    got = pieces(node, arrays, cuts) if cuts else whole
    np.testing.assert_allclose(got, whole, rtol=1e-4, atol=1e-4 * float(np.abs(whole).max()))
    one, three = (NumpyProgram(graph, threads=threads).run(feeds)[name] for threads in (1, 3))
    assert_same_bits(one, three)
    np.testing.assert_allclose(one, whole, rtol=1e-4, atol=1e-4 * float(np.abs(whole).max()))


def test_every_rule_for_pieces_is_met() -> None:
    met = {c.op for c in PRODUCTS if cuts_of(c.graph(c.arrays())[1], opdef(c.op))}
    assert met == {d.name for d in all_ops().values() if d.split_rule is not None}


# ---- traits -------------------------------------------------------------------------------------------------------------


def results(case: Case, arrays: Sequence[Array | None]) -> list[Array]:
    graph, _ = case.graph(arrays)
    return list(evaluate(graph, case.feeds(arrays), rng=np.random.default_rng(0)).values())


@cases_of(lambda d: Trait.SHAPE_ONLY in d.traits)
def test_what_depends_on_shapes_alone_does_not_change_with_the_data(case: Case) -> None:
    arrays = case.arrays()
    others = [None if a is None else (a + a.dtype.type(1)) if a.dtype.kind in "fiu" else a + "x" if a.dtype == object else ~a
              for a in arrays]
    for got, expected in zip(results(case, others), results(case, arrays), strict=True):
        np.testing.assert_array_equal(got, expected)


@cases_of(lambda d: Trait.REGROUPS in d.traits)
def test_what_regroups_keeps_the_order(case: Case) -> None:
    arrays = case.arrays()
    assert arrays[0] is not None
    np.testing.assert_array_equal(results(case, arrays)[0].reshape(-1), arrays[0].reshape(-1))


@cases_of(lambda d: Trait.BOUNDED in d.traits)
def test_what_is_bounded_is_not_much_larger_than_its_operands(case: Case) -> None:
    arrays = case.arrays()
    rank = max(a.ndim for a in arrays if a is not None)
    most = max(a.size for a in arrays if a is not None) * max(rank, 1)
    graph, node = case.graph(arrays)
    assert all(a.size <= most for a in results(case, arrays))
    assert any(not v.type.is_static for v in node.results), "the extents do not depend on data"


@cases_of(lambda d: d.ranks_rule is not None)
def test_ranks_that_are_demanded_are_those_of_every_row(case: Case) -> None:
    arrays = case.arrays()
    _, node = case.graph(arrays)
    rule = opdef(case.op).ranks_rule
    assert rule is not None
    for array, value, rank in zip(arrays, node.inputs, rule(node), strict=False):
        assert array is None or rank in (None, array.ndim)
        if value is not None:
            value.type = value.type.with_shape(None)
    for array, rank in zip(arrays, rule(node), strict=False):
        assert array is None or rank in (None, array.ndim)


@cases_of(lambda d: Trait.COMMUTATIVE in d.traits)
def test_what_is_commutative_may_be_swapped(case: Case) -> None:
    first, second, *rest = case.inputs
    swapped = replace(case, inputs=[second, first, *rest])
    arrays = case.arrays()
    for got, expected in zip(results(swapped, [arrays[1], arrays[0], *arrays[2:]]), results(case, arrays), strict=True):
        np.testing.assert_array_equal(got, expected)


# ---- dtypes -------------------------------------------------------------------------------------------------------------


DTYPE_NAMES = re.compile(r"to|(.*_)?(dtype|datatype|stash_type|precision)")


@pytest.mark.parametrize("definition", STANDARD, ids=lambda d: d.name)
def test_defaults_of_float_attributes_are_the_float32_of_the_standard(definition: OpDef) -> None:
    told = {name: a.default_value.f for name, a in schema_of(definition).attributes.items()
            if a.type == defs.OpSchema.AttrType.FLOAT and a.default_value.name}
    assert {name: definition.attributes[name] for name in told} == told


@ops_with(lambda d: d.attributes)
def test_attributes_that_hold_a_dtype_are_declared(definition: OpDef) -> None:
    named = {name for name in definition.attributes if DTYPE_NAMES.fullmatch(name)}
    types = set() if definition.domain else {a.name for a in schema_of(definition).attributes.values()
                                             if a.type == defs.OpSchema.AttrType.TYPE_PROTO}
    assert set(definition.dtype_attributes) == named | types
    if not definition.domain:
        told = {a.name for a in schema_of(definition).attributes.values() if a.type == defs.OpSchema.AttrType.INT
                and re.search(r"data ?type|TensorProto|precision", a.description, re.IGNORECASE)}
        assert named == told


@pytest.mark.parametrize("definition", STANDARD, ids=[d.name for d in STANDARD])
def test_inputs_that_stay_float32_are_declared(definition: OpDef) -> None:
    formals = enumerate(schema_of(definition).inputs)
    assert definition.float32_inputs == {i for i, formal in formals if set(formal.types) == {"tensor(float)"}}


FLOATS = {"tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"}


@pytest.mark.parametrize("definition", [d for d in STANDARD if not d.subgraphs], ids=lambda d: d.name)
def test_inputs_of_another_float_dtype_are_declared(definition: OpDef) -> None:
    """Where the letter of a type changes from one input that may be a float to the next."""
    formals = [(i, formal.type_str) for i, formal in enumerate(schema_of(definition).inputs)
               if FLOATS & set(formal.types) and i not in definition.float32_inputs]
    changes = {i for (_, before), (i, after) in itertools.pairwise(formals) if before != after}
    assert definition.new_dtypes == changes


def test_inputs_that_stay_float32_are_declared_by_own_operators_too() -> None:
    found: dict[str, set[int]] = {}
    for case in CASES:
        arrays = case.arrays()
        if opdef(case.op).domain and any(a is not None and a.dtype == np.float64 for a in arrays):
            held = {i for i, a in enumerate(arrays) if a is not None and a.dtype == np.float32}
            found.setdefault(case.op, set()).update(held)
    assert {name: slots for name, slots in found.items() if slots} == {
        d.name: set(d.float32_inputs) for d in all_ops().values() if d.domain and d.float32_inputs}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@cases_of(lambda d: d.float32_inputs)
def test_inputs_that_stay_float32_keep_their_precision(case: Case, dtype: str) -> None:
    arrays = case.arrays()
    for form in forms(case):
        graph, node = form.graph(arrays)
        (twin,) = (n for n in converted(graph, dtype).nodes() if n.op == case.op)
        for slot in opdef(case.op).float32_inputs & set(range(len(node.inputs))):
            before, after = node.inputs[slot], twin.inputs[slot]
            if before is not None and after is not None:
                assert after.type == before.type and after.producer.op == before.producer.op
                assert before.constant is None or np.array_equal(after.constant, before.constant)  # type: ignore[arg-type]
                assert after.type.dtype == FLOAT32


def test_a_value_that_only_one_use_keeps_in_float32_keeps_its_precision_there() -> None:
    graph = Graph()
    b = Builder(graph)
    x, scales = graph.add_input("x", Type(FLOAT32, (10,))), graph.add_constant(np.array([0.1], np.float32), "scales", INITIALIZER)
    graph.add_output(b.Mul(b.Resize(x, None, scales), scales), "y")
    twin = converted(graph, "float16")
    assert evaluate(twin, {"x": np.arange(10).astype(np.float16)})["y"].shape == (1,)  # 10 times 0.1 in float16 is below 1


LATER = [(d, *entry) for d in STANDARD for entry in d.values_since.items()]
OTHER_MEANING = {("MaxPool", "ceil_mode"), ("AveragePool", "ceil_mode")}
"""The value is older; a last window wholly in the padding counted before."""


@pytest.mark.parametrize(("definition", "pair", "since"), LATER, ids=[f"{d.name}-{p[0]}-{p[1]}" for d, p, _ in LATER])
def test_values_that_came_later(definition: OpDef, pair: tuple[str, Any], since: int) -> None:
    name, value = pair
    assert definition.since < since <= OPSET
    assert schema_of(definition, since).since_version == since, "nothing changed in that opset"
    if (definition.name, name) not in OTHER_MEANING:
        told = [re.search(rf"\b{value}\b", schema_of(definition, v).attributes[name].description) for v in (since - 1, since)]
        assert told[0] is None and told[1] is not None


# ---- settings and what decides ------------------------------------------------------------------------------------------


@cases_of(lambda d: d.settings)
def test_settings_are_no_parameters(case: Case) -> None:
    arrays = case.arrays()
    definition = opdef(case.op)
    fed = next(i for i, s in enumerate(case.inputs) if s is not None)
    for slot, array in enumerate(arrays):
        if array is None or slot == fed or array.dtype.kind != "f" or case.build is not None:
            continue
        graph, node = case.graph(arrays)
        weight = graph.add_constant(array, "weight", INITIALIZER)
        graph.set_inputs(node, [weight if i == slot else v for i, v in enumerate(node.inputs)])
        (found,) = (c for c in candidates(graph) if c.value is weight)
        assert found.included == (slot not in definition.settings), found


@ops_with(lambda d: d.subgraphs)
def test_inputs_that_decide_are_those_that_no_subgraph_takes(definition: OpDef) -> None:
    assert definition.deciding == set(range(len(definition.inputs)))


def test_only_subgraphs_are_decided_upon() -> None:
    assert not [d.name for d in all_ops().values() if d.deciding and not d.subgraphs]


@cases_of(lambda d: d.subgraphs)
def test_formal_inputs_are_those_of_the_subgraphs(case: Case) -> None:
    _, node = case.graph(case.arrays())
    rule = opdef(case.op).formals_rule
    assert rule is not None
    types = rule(node)
    for body in node.subgraphs.values():
        formals = body.inputs[: len(body.inputs) - len(node.captures)]
        assert [v.type for v in formals] == list(types)


# ---- export -------------------------------------------------------------------------------------------------------------


@cases_of(lambda d: d.export_rule)
def test_what_expands_on_export_is_gone(case: Case) -> None:
    graph, node = case.graph(case.arrays(), symbolic=case.symbolic)
    rule = opdef(case.op).export_rule
    assert rule is not None
    left = [n for _, n in lowered(graph).walk() if n.op == case.op]
    assert not any(rule(n) for n in left)
    assert left or rule(node)


@cases_of(lambda d: d.export_outputs_rule)
def test_outputs_that_runtimes_want_are_named(case: Case) -> None:
    graph, node = case.graph(case.arrays())
    rule = opdef(case.op).export_outputs_rule
    assert rule is not None
    (made,) = (n for n in write_onnx(graph).graph.node if n.op_type == case.op)
    wanted = rule(node)
    assert all(made.output) and len(made.output) == max(len(wanted), len(node.outputs))
    for value, type_ in zip(node.outputs, wanted, strict=False):
        assert value is None or merge_types(value.type, type_) == value.type


# ---- declarations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [
    {"extents": ("shap",)}, {"settings": ("shap",)}, {"deciding": ("shap",)}, {"float32_inputs": ("shap",)},
    {"dtype_attributes": ("too",)}, {"values_since": {("too", 1): 20}},
], ids=lambda facts: next(iter(facts)))
def test_a_fact_about_nothing_is_refused(facts: dict[str, Any]) -> None:
    with scoped():
        with pytest.raises(ValidationError, match=r"Odd has no \w+ '\w+'; did you mean"):
            op("Odd", **facts)(lambda data, shape, *, to=1: data)
        assert "Odd" not in all_ops()
        with pytest.raises(ValidationError, match="Odd has no residual 'mask'"):
            op("Odd")(lambda data: data).residual("mask")


# ---- one op, one place --------------------------------------------------------------------------------------------------


ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("ir", "passes", "flowgrad", "flowgrad/exchange", "flowgrad/runtime", "flowgrad/transforms")

ELSEWHERE = {
    ("flowgrad/exchange/adapters.py", "table"): "names that old opsets had",
    ("flowgrad/exchange/adapters.py", "question"): "what old opsets meant by Upsample and Scan",
    ("flowgrad/exchange/importer.py", "question"): "a file may let what a Loop carries change its shape: its body is read again",
    ("flowgrad/exchange/microsoft.py", "table"): "activations that another domain fuses into its operators, by name",
    ("flowgrad/transforms/logits.py", "table"): "the functions that make probabilities",
    ("flowgrad/transforms/training.py", "question"): "running statistics are states of BatchNormalization alone",
    ("flowgrad/transforms/logits.py", "question"): "how converters spell that probabilities are divided by their sum",
    ("ir/derivative_builder.py", "question"): "adding a symbolic zero is no addition",
    ("passes/simplify.py", "question"): "an identity is a literal, or what EyeLike makes",
    ("passes/sparsity.py", "question"): "branches are joined, and states of loops followed until nothing is added",
    ("passes/stabilize.py", "question"): "a rewrite asks which of the alternatives of its own pattern it has met",
    ("passes/untrained.py", "question"): "what makes a table one of angles is that sines and cosines are taken of it",
}
"""Where files outside operator blocks may tell operators apart by name, and why."""


def named_ops(node: ast.AST) -> list[str]:
    """Return the names of operators that are elements or keys of a literal, or the literal itself."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and node.value in all_ops() else []
    if isinstance(node, ast.Dict):
        return [name for key in (*node.keys, *node.values) if key is not None for name in named_ops(key)]
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return [name for element in node.elts for name in named_ops(element)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("dict", "frozenset", "set", "tuple"):
        return [name for part in (*node.args, *(k.value for k in node.keywords)) for name in named_ops(part)]
    return []


def told_apart(source: str) -> list[tuple[str, int]]:
    """Return what in a module tells operators apart by name: ("table" or "question", line)."""
    found = []
    tree = ast.parse(source)
    bodies = [tree.body, *(c.body for c in tree.body if isinstance(c, ast.ClassDef))]
    for statement in (s for body in bodies for s in body):
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None and named_ops(statement.value):
            found.append(("table", statement.lineno))
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(named_ops(part) for part in (node.left, *node.comparators)):
            found.append(("question", node.lineno))
        if isinstance(node, ast.MatchValue) and named_ops(node.value):
            found.append(("question", node.lineno))
        if isinstance(node, (ast.Dict, ast.Set)) and len(named_ops(node)) > 1:
            found.append(("table", node.lineno))
    return found


def test_nothing_about_an_operator_is_told_outside_its_block() -> None:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
    found = {(str(path.relative_to(ROOT)), kind): line for path in paths for kind, line in told_apart(path.read_text())}
    assert sorted(found) == sorted(ELSEWHERE), found


@pytest.mark.parametrize(("source", "kinds"), [
    ("SMOOTH = {'Tanh', 'Sin'}", {"table"}),
    ("RULES: dict = dict(a=frozenset(['Relu']))", {"table"}),
    ("class A:\n    ops = ('Relu',)", {"table"}),
    ("def f(n):\n    return {'Relu': 1, 'Abs': 2}[n.op]", {"table"}),
    ("def f(n):\n    return n.op == 'Relu' or n.op not in ('Abs', 'Sign')", {"question"}),
    ("def f(n):\n    match n.op:\n        case 'Relu':\n            return 1", {"question"}),
    ("def f(b, x):\n    return b.made_by(x, 'Relu') is None or b.add('Abs', [x])", set()),
    ("PATTERN = 'Relu(%x)'", set()),
])
def test_what_tells_operators_apart_is_seen(source: str, kinds: set[str]) -> None:
    assert {kind for kind, _ in told_apart(source)} == kinds
