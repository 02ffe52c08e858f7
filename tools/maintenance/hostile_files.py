"""Files from strangers: ONNX models that ask for what no model should, and mutants of whole files of every form."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from flowgrad.ir.ops.registry import FLOWGRAD, all_ops
from flowgrad.ir.pack import pack
from flowgrad.model import Model, load

Rng = random.Random

SAMPLES = (
    "graph @mlp (%x: f32[N, 3]) -> (%y: f32[N, 2]) initializers (%w: f32[3, 2] = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]) "
    "{ %h: f32[N, 3] = Tanh(%x) %m: f32[N, 2] = MatMul(%h, %w) %y: f32[N, 2] = Softmax(%m) {axis=-1} }",
    "graph @image (%x: f32[1, 2, 5, 5]) -> (%y: f32[1, 2, 1, 1]) { %c: f32[1, 2, 3, 3] = MaxPool(%x) {kernel_shape=[3,3]} "
    "%y: f32[1, 2, 1, 1] = GlobalAveragePool(%c) }",
    "graph @shape (%x: f32[N, 4]) -> (%y: f32[2*N, 8]) initializers (%one: f32[1] = [1.0]) "
    "{ %s: i64[2] = Shape(%x) %t: i64[2] = Add(%s, %s) %y: f32[2*N, 8] = Expand(%one, %t) }",
    "graph @sums (%x: f32[2, 3]) -> (%y: f32[2], %z: f32[3, 2]) { %e: f32[2, 3] = Exp(%x) "
    "%y: f32[2] = ReduceSum(%e, [1]) {keepdims=0} %z: f32[3, 2] = Transpose(%e) {perm=[1,0]} }",
)


@cache
def sample_models() -> tuple[Model, ...]:
    """Return small whole models, those of ``SAMPLES`` and some that ONNX alone can say."""
    body = helper.make_graph(
        [helper.make_node("Add", ["a", "x"], ["b"]), helper.make_node("Identity", ["c"], ["d"])], "body",
        [_info("i", (), TensorProto.INT64), _info("c", (), TensorProto.BOOL), _info("a", (2,))],
        [_info("d", (), TensorProto.BOOL), _info("b", (2,))])
    loop = helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)
    looped = _model([loop], {"x": (2,)}, ["y"], {"trips": np.asarray(3)})
    dense = _model([helper.make_node("Gemm", ["x", "w"], ["h"], alpha=0.5), helper.make_node("LeakyRelu", ["h"], ["y"])],
                   {"x": ("N", 3)}, ["y"], {"w": np.ones((3, 40), np.float32)})
    return (*(load(text.encode()) for text in SAMPLES), load(looped), load(dense))


# ---- mutants --------------------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: Rng) -> bytes:
    """Return ``data`` with a few bytes changed, left out, doubled, or moved."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, count = rng.randrange(len(changed) or 1), rng.choice((1, 1, 2, 4, 16))
        what = rng.randrange(6)
        if what == 0:
            changed[at:at + 1] = bytes((rng.randrange(256),))
        elif what == 1:
            changed[at:at + 1] = bytes((changed[at] ^ 1 << rng.randrange(8),)) if changed else b""
        elif what == 2:
            del changed[at:at + count]
        elif what == 3:
            changed[at:at] = changed[at:at + count]
        elif what == 4:
            changed[at:at + count] = rng.choice((b"\xff" * count, b"\0" * count, b"\x7f" + b"\xff" * 8))
        else:
            other = rng.randrange(len(changed) or 1)
            changed[at:at + count] = changed[other:other + count]
    return bytes(changed)


@cache
def _onnx_files() -> tuple[bytes, ...]:
    return tuple(m.to_onnx().SerializeToString() for m in sample_models())


@cache
def _packed_files() -> tuple[bytes, ...]:
    return tuple(pack(m.graph) for m in sample_models())


DIGEST = 32
"""The bytes of the digest at the end of a msgpack file."""


def sealed_mutant(rng: Rng) -> bytes:
    """Return a msgpack file with bytes changed, mostly in place, under a digest that is right."""
    data = bytearray(rng.choice(_packed_files()))
    if rng.random() < 0.7:
        for _ in range(rng.choice((1, 1, 2, 4))):
            data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), 0xCF, 0xFF, 0x7F, 0xC0, 0x90))
    else:
        data = bytearray(mutated(bytes(data), rng))
    return sealed(bytes(data))


def sealed(data: bytes) -> bytes:
    """Return a msgpack file with the digest that is right for what stands before it."""
    return data[:-DIGEST] + hashlib.blake2b(data[:-DIGEST], digest_size=DIGEST).digest()


_WORDS = ("9223372036854775807", "-1", "18446744073709551616", "1e999", "nan", "[", "]", "{", "}", "%x", "f32[*]",
          "i64[1099511627776]", "axis=99", "axis=(1, 2)", "floor(N, 0)", "N*N*N", '"\\u001b[2J"', "Loop", "Range", "Tile")


def text_mutant(rng: Rng) -> bytes:
    """Return the text of a graph with words replaced, or bytes changed."""
    text = str(rng.choice(sample_models()))
    if rng.random() < 0.5:
        return mutated(text.encode(), rng)
    words = text.split(" ")
    for _ in range(rng.choice((1, 1, 2, 4))):
        words[rng.randrange(1, len(words))] = rng.choice((*_WORDS, *words[1:]))
    return " ".join(words).encode()


def npz_mutant(rng: Rng) -> bytes:
    """Return an archive of arrays with bytes changed."""
    stream = io.BytesIO()
    save = np.savez_compressed if rng.random() < 0.5 else np.savez
    save(stream, x=np.ones((2, 3), np.float32), name=np.arange(4))
    return mutated(stream.getvalue(), rng)


# ---- ONNX models that ask for what no model should ------------------------------------------------------------------------


def _info(name: str, shape: Any, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _model(nodes: Sequence[NodeProto], inputs: dict[str, Any], outputs: Sequence[str], weights: dict[str, Any] | None = None,
           **more: Any) -> ModelProto:
    graph = helper.make_graph(
        list(nodes), more.pop("name", "g"), [_info(n, s) for n, s in inputs.items()], [_info(n, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()])
    opset = more.pop("opset", 18)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **more)


@cache
def _operators() -> tuple[str, ...]:
    return tuple(sorted(n for n, d in all_ops().items() if d.domain != FLOWGRAD and not d.subgraphs))


EVIL_INTS = (-2**63, -2**31, -100, -1, 0, 1, 2, 3, 100, 2**20, 2**31, 2**40, 2**62, 2**63 - 1)
EVIL_NAMES = ("\x1b[31mred", "a\nb", "a\rb", "\u202eevil", "\x07", "\x7f", "%x", '"', "\\", "a b", "../up", "file",
              "allow_pickle", "self", "\U0001f600" * 60, "n" * 900, "x=1", "{}", "-", "#", "\u2028", "\ufeff", "0")


def _evil_attribute(name: str, rng: Rng) -> AttributeProto:
    ints = [rng.choice(EVIL_INTS) for _ in range(rng.randrange(4))]
    value: Any = rng.choice((rng.choice(EVIL_INTS), rng.choice((0.5, -1.0, 1e30, float("nan"), float("inf"))),
                             rng.choice(("", "a", "NOTSET", "\x1b[2J")), ints, [0.5, 2.0], ["a", "b"]))
    proto = AttributeProto(name=name)
    kinds = {int: AttributeProto.INT, float: AttributeProto.FLOAT, str: AttributeProto.STRING}
    if isinstance(value, list):
        first = type(value[0]) if value else int
        proto.type = {int: AttributeProto.INTS, float: AttributeProto.FLOATS, str: AttributeProto.STRINGS}[first]
        getattr(proto, {int: "ints", float: "floats", str: "strings"}[first]).extend(
            [v.encode() if isinstance(v, str) else v for v in value])
    else:
        proto.type = kinds[type(value)]
        setattr(proto, {int: "i", float: "f", str: "s"}[type(value)], value.encode() if isinstance(value, str) else value)
    return proto


def attributes(rng: Rng) -> ModelProto:
    """An operator with attributes of any kind and value."""
    op = rng.choice(_operators())
    definition = all_ops()[op]
    count = max(definition.required_inputs, 1)
    shape: Any = rng.choice(((2, 3), (1, 2, 5, 5), (1, 3, 8), (4,), ("N", 3), None))
    node = helper.make_node(op, [f"x{i}" for i in range(count)], ["y"])
    for name in rng.sample(sorted(definition.attributes), min(len(definition.attributes), rng.randrange(1, 4))):
        node.attribute.append(_evil_attribute(name, rng))
    return _model([node], {f"x{i}": shape for i in range(count)}, ["y"], opset=rng.choice((7, 9, 11, 13, 18, 21)))


def operands(rng: Rng) -> ModelProto:
    """An operator with integer operands beyond reason, such as the repeats of Tile and the ends of Range."""
    op = rng.choice(_operators())
    definition = all_ops()[op]
    inputs: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    for i in range(max(definition.required_inputs, rng.randrange(1, 5) if definition.variadic else 1)):
        if i and rng.random() < 0.7 or (i == 0 and rng.random() < 0.3):
            size = rng.choice(((), (1,), (2,), (4,)))
            weights[f"x{i}"] = np.array([rng.choice(EVIL_INTS) for _ in range(int(np.prod(size)))], np.int64).reshape(size)
        else:
            inputs[f"x{i}"] = rng.choice(((2, 3), (1, 2, 5, 5), (4,), (), ("N", 3), None))
    return _model([helper.make_node(op, [*inputs, *weights], ["y"])], inputs, ["y"], weights)


def names(rng: Rng) -> ModelProto:
    """Names, text and a graph name that are out to harm a terminal, a file system, or a parser."""
    x, y, h, g = rng.sample(EVIL_NAMES, 4)
    nodes = [helper.make_node("Tanh", [x], [h], name=rng.choice(EVIL_NAMES)), helper.make_node("Neg", [h], [y])]
    return _model(nodes, {x: (2, rng.choice(EVIL_NAMES))}, [y], name=g)


def extents(rng: Rng) -> ModelProto:
    """Declared shapes beyond memory, and extents that grow from operator to operator."""
    if rng.random() < 0.5:
        shape = tuple(rng.choice((2**20, 2**31, 2**40, 2**62, -1, 0, 1, "N")) for _ in range(rng.randrange(1, 40)))
        return _model([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, ["y"])
    nodes = [helper.make_node("Shape", ["x"], ["s0"])]
    steps = rng.randrange(1, 60)
    op = rng.choice(("Mul", "Add", "Concat"))
    for i in range(steps):
        more: dict[str, Any] = {"axis": 0} if op == "Concat" else {}
        nodes.append(helper.make_node(op, [f"s{i}", f"s{i}"], [f"s{i + 1}"], **more))
    nodes.append(helper.make_node(rng.choice(("Expand", "ConstantOfShape")), ["one", f"s{steps}"], ["y"]))
    if nodes[-1].op_type == "ConstantOfShape":
        del nodes[-1].input[0]
    return _model(nodes, {"x": rng.choice((("N",), (2, 3), (1000, 1000), ("N", "M")))}, ["y"], {"one": np.ones(1, np.float32)})


def order(rng: Rng) -> ModelProto:
    """Cycles, nodes out of order, names defined twice or nowhere."""
    known = ["x", *(f"v{i}" for i in range(6)), "nowhere"]
    nodes = [helper.make_node(rng.choice(("Relu", "Add", "Mul")), [rng.choice(known), rng.choice(known)][: rng.choice((1, 2))],
                              [rng.choice(known[:-1])]) for _ in range(rng.randrange(1, 8))]
    return _model(nodes, {"x": (2,)}, [rng.choice(known)])


def nesting(rng: Rng) -> ModelProto:
    """Subgraphs within subgraphs, and loops that do not end."""
    def body(depth: int) -> onnx.GraphProto:
        inner = [helper.make_node("Relu", ["x"], [f"r{depth}"])]
        if depth:
            sub = body(depth - 1)
            inner = [helper.make_node("If", ["flag"], [f"r{depth}"], then_branch=sub, else_branch=sub)]
        return helper.make_graph(inner, "b", [], [_info(f"r{depth}", None)])

    flag = {"flag": np.asarray(True)}
    if rng.random() < 0.4:
        branch = body(rng.choice((0, 1, 2, 4, 9)))
        return _model([helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)], {"x": (2,)}, ["y"],
                      flag)
    op = rng.choice(("Add", "Concat", "MatMul"))
    more: dict[str, Any] = {"axis": 0} if op == "Concat" else {}
    inner = helper.make_graph(
        [helper.make_node(op, ["a", "a"], ["b"], **more),
         helper.make_node("Identity", ["c"], ["d"])], "body",
        [_info("i", (), TensorProto.INT64), _info("c", (), TensorProto.BOOL), _info("a", None)],
        [_info("d", None, TensorProto.BOOL), _info("b", None)] + [_info("b", None)] * rng.randrange(2))
    trips = {"m": np.asarray(rng.choice((0, 1, 5, 30, 2**40, 2**62)))} if rng.random() < 0.8 else {}
    node = helper.make_node("Loop", ["m" if trips else "", "flag", "x"], ["y"], body=inner)
    return _model([node], {"x": (2, 2)}, ["y"], {**flag, **trips})


def external(rng: Rng) -> ModelProto:
    """Weights that are said to lie in other files, anywhere."""
    proto = _model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (2,)}, ["y"])
    tensor = TensorProto(name="w", data_type=rng.choice((1, 7, 11)), dims=[rng.choice((2, 2**40))],
                         data_location=TensorProto.EXTERNAL)
    location = rng.choice(("/etc/passwd", "../secret", "a/../../secret", "./w", "w", "", "\0", "C:\\x", "a\\b", "/dev/zero",
                           ".", "..", "w/", "\ud7ff", "x" * 500, "link"))
    for key, value in (("location", location), ("offset", rng.choice(("0", "-1", "1e9", "9" * 19, "9" * 30, "x"))),
                       ("length", rng.choice(("8", "0", "-8", str(2**62))))):
        if key == "location" or rng.random() < 0.5:
            tensor.external_data.add(key=key, value=value)
    proto.graph.initializer.append(tensor)
    return proto


def tensors(rng: Rng) -> ModelProto:
    """Tensors whose type, shape and contents disagree."""
    proto = _model([helper.make_node(rng.choice(("Add", "Reshape", "MatMul")), ["x", "w"], ["y"])], {"x": (2, 3)}, ["y"])
    tensor = TensorProto(name="w", data_type=rng.randrange(-1, 30), dims=[rng.choice(EVIL_INTS) for _ in range(rng.randrange(4))])
    tensor.raw_data = bytes(rng.randrange(30))
    if rng.random() < 0.5:
        tensor.float_data.extend([1.0] * rng.randrange(6))
    proto.graph.initializer.append(tensor)
    return proto


def versions(rng: Rng) -> ModelProto:
    """Versions of everything, functions that call themselves, references to attributes that are not there."""
    proto = _model([helper.make_node(rng.choice(("Relu", "F")), ["x"], ["y"], domain=rng.choice(("", "d")))], {"x": (2,)}, ["y"])
    proto.ir_version = rng.choice(EVIL_INTS + (8, 9, 10))
    proto.opset_import[0].version = rng.choice(EVIL_INTS + (7, 13, 18))
    proto.opset_import.add(domain="d", version=rng.choice((1, 2)))
    if rng.random() < 0.7:
        imports = [helper.make_opsetid(d, 18) for d in rng.choice(((), ("",), ("", "d")))]
        nodes = [helper.make_node(rng.choice(("Elu", "F")), ["a"], ["b"], domain=rng.choice(("", "d")))]
        proto.functions.append(helper.make_function("d", "F", ["a"], ["b"], nodes, imports))
    if rng.random() < 0.3:
        proto.graph.node[0].attribute.add(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT)
    return proto


CLASSES: dict[str, Callable[[Rng], ModelProto]] = {
    f.__name__: f for f in (attributes, operands, names, extents, order, nesting, external, tensors, versions)}

FORMS: dict[str, Callable[[Rng], bytes]] = {
    "protobuf": lambda rng: mutated(rng.choice(_onnx_files()), rng),
    "msgpack": lambda rng: mutated(rng.choice(_packed_files()), rng),
    "sealed": sealed_mutant,
    "text": text_mutant,
    "npz": npz_mutant,
}


def hostile_file(kind: str, seed: int) -> bytes:
    """Return the file of a class or form for a seed."""
    rng = random.Random(f"{kind}{seed}")
    return CLASSES[kind](rng).SerializeToString() if kind in CLASSES else FORMS[kind](rng)
