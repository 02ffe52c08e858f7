"""Shapes fixed at load: what they do to types, in every form of file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import flowgrad as fg
from flowgrad.ir.errors import InputError, UnsupportedError
from flowgrad.ir.fixed_shapes import Shapes
from flowgrad.ir.verify import verify
from flowgrad.tools.cli import main
from tests.onnx_models import info, model

DATA = Path(__file__).resolve().parent / "data"

TEXT = b"""graph @g (%x: f32[batch,3,H,W], %y: f32[batch,K], %n: f32[2*K]) -> (%s: f32[batch,3*H*W], %t: f32[batch,K], %n2: f32[2*K]) {
    %shape: i64[4] = Shape(%x)
    %b: i64[1] = Slice(%shape, [0], [1])
    %to: i64[2] = Concat(%b, [-1]) {axis=0}
    %s: f32[batch,3*H*W] = Reshape(%x, %to)
    %t: f32[batch,K] = Relu(%y)
    %n2: f32[2*K] = Neg(%n)
}"""

LOOP = b"""graph @g (%x: f32[N,2]) -> (%y: f32[N,2]) {
    %y: f32[N,2] = Loop(3, _, %x)
        body = graph @body (%i: i64[], %c: bool[], %h: f32[N,2]) -> (%c2 = %c: bool[], %h2: f32[N,2]) {
            %h2: f32[N,2] = Tanh(%h)
        }
}"""


def shape_of(loaded: fg.Model, name: str) -> tuple[int | str, ...] | None:
    return {v.name: v.shape for v in (*loaded.inputs, *loaded.outputs)}[name]


def pooled() -> Any:
    """Return a model of an input of unknown rank that an operator wants to transpose."""
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transA=1)
    return model([node], {"x": None, "w": (5, 7)}, ["y"], domains={"com.microsoft": 1})


@pytest.mark.parametrize("shapes", [{"x": (6, 3, 8, None)}, {"batch": 6, "H": 8}, {"x": (None, None, 8, None), "batch": 6}])
def test_types_follow_the_shapes_of_inputs_and_dims(shapes: Shapes) -> None:
    loaded = fg.load(TEXT, shapes=shapes)
    verify(loaded.graph)
    assert shape_of(loaded, "x") == (6, 3, 8, "W")
    assert shape_of(loaded, "y") == shape_of(loaded, "t") == (6, "K")
    assert shape_of(loaded, "s") == (6, "24*W")


def test_an_expression_of_dims_follows_them_and_may_be_given_too() -> None:
    assert shape_of(fg.load(TEXT, shapes={"K": 4}), "n2") == (8,)
    assert shape_of(fg.load(TEXT, shapes={"n": (8,), "y": (None, 4)}), "n2") == (8,)
    with pytest.raises(InputError, match=r"input 'n' is f32\[2\*K\] in the file; got \[9\] where 8 is expected"):
        fg.load(TEXT, shapes={"n": (9,), "K": 4})
    with pytest.raises(InputError, match=r"got \[8\] where 2\*K is expected; give the dims that it is made of"):
        fg.load(TEXT, shapes={"n": (8,)})


def test_bodies_follow_and_so_do_saved_gradients(tmp_path: Path) -> None:
    gradient = fg.vjp(fg.load(LOOP))
    gradient.save(tmp_path / "g.msgpack")
    fixed = fg.load(tmp_path / "g.msgpack", shapes={"x": (5, 2)})
    verify(fixed.graph)
    assert all(v.type.is_static for g, node in fixed.graph.walk() for v in node.results if v.name == "h2")
    feeds = {"x": np.ones((5, 2), np.float32), "y_grad": np.ones((5, 2), np.float32)}
    assert np.array_equal(fixed(feeds)["x_grad"], gradient(feeds)["x_grad"])


def test_what_needs_a_rank_loads_with_one() -> None:
    with pytest.raises(UnsupportedError, match="unknown rank"):
        fg.load(pooled())
    loaded = fg.load(pooled(), shapes={"x": [5, None]})
    assert shape_of(loaded, "y") is not None
    assert loaded(x=np.ones((5, 3), np.float32), w=np.ones((5, 7), np.float32))["y"].shape == (3, 7)


def test_an_exported_model_has_the_shapes(tmp_path: Path) -> None:
    gradient = fg.value_and_grad(fg.load(DATA / "mlp.onnx", shapes={"N": 3}), of="loss", wrt="x")
    proto = gradient.to_onnx(tmp_path / "g.onnx")
    assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [3, 4]
    feeds = {"x": np.ones((3, 4), np.float32), "target": np.array([0, 1, 2])}
    expected = fg.value_and_grad(fg.load(DATA / "mlp.onnx"), of="loss", wrt="x")(feeds)
    assert np.array_equal(gradient(feeds)["x_grad"], expected["x_grad"])


WRONG: list[tuple[Any, str, str]] = [
    ({"X": (1, 3, 8, 8)}, "name", r"no input 'X'; did you mean 'x'\?; inputs of the file: x: f32\[batch,3,H,W\], y: "),
    ({"bacth": 1}, "name", r"no input and no dim 'bacth'; did you mean 'batch'\?.*; dims: H, K, W, batch"),
    ({"x": (1, 3, 8)}, "shape", r"input 'x' is f32\[batch,3,H,W\] in the file, of rank 4; got \[1,3,8\], of rank 3"),
    ({"x": (1, 4, 8, 8)}, "shape", r"input 'x' is f32\[batch,3,H,W\] in the file; got \[1,4,8,8\]: an extent that is a number"),
    ({"x": (1, 3, 8, 8), "y": (2, 5)}, "shape", r"the shape \[2,5\] of input 'y' makes the dim 'batch' 2, the shape \[1,3,8,8\] "
                                               r"of input 'x' makes it 1"),
    ({"x": (1, 3, 8, 8), "batch": 2}, "shape", r"the entry 'batch' of shapes makes the dim 'batch' 2, the shape \[1,3,8,8\] of input 'x'"),
    ({"x": 1}, "shape", r"input 'x' is f32\[batch,3,H,W\] in the file: give its shape as a sequence, got 1"),
    ({"batch": -1}, "shape", "is given the extent -1"),
    ({"x": (1, 3, -8, 8)}, "shape", "None for one that stays open, got"),
    ({"x": (True, 3, 8, 8)}, "shape", "None for one that stays open, got"),
    ({"x": "1388"}, "shape", "None for one that stays open, got '1388'"),
    ({"x": None}, "shape", "None for one that stays open, got None"),
    ([("x", (1, 3, 8, 8))], "shape", "shapes maps names of inputs to shapes"),
    ({1: (1, 3, 8, 8)}, "shape", "shapes maps names of inputs to shapes"),
]


@pytest.mark.parametrize(("shapes", "code", "says"), WRONG, ids=[str(w[0]) for w in WRONG])
def test_wrong_shapes_are_told_with_what_the_file_says(shapes: Any, code: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        fg.load(TEXT, shapes=shapes)
    assert caught.value.code == code


def test_dim_says_its_name_once() -> None:
    proto = model([helper.make_node("Concat", ["x", "x"], ["y"], axis=0)], {"x": ("N", 2)}, ["y"])
    assert shape_of(fg.load(proto, shapes={"N": 4}), "y") == (8, 2)
    with pytest.raises(InputError, match="no input and no dim 'M'"):
        fg.load(proto, shapes={"M": 4})


def test_a_container_has_no_shape() -> None:
    declared = helper.make_value_info("s", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None)))
    proto = model([helper.make_node("SequenceAt", ["s", "i"], ["y"])], {"s": declared, "i": info("i", (), 7)}, ["y"])
    with pytest.raises(InputError, match="input 's' is .*sequence.* in the file, which has no shape"):
        fg.load(proto, shapes={"s": (1,)})


def test_shapes_that_an_operator_cannot_have_name_it() -> None:
    text = b"graph @g (%x: f32[N], %y: f32[M]) -> (%z: f32[*]) { %z: f32[*] = MatMul(%x, %y) }"
    with pytest.raises(InputError, match="the shapes that were given do not fit MatMul"):
        fg.load(text, shapes={"N": 3, "M": 4})


def test_commands_take_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mlp = str(DATA / "mlp.onnx")
    assert main(["inspect", mlp, "--input-shapes", "x:6,?", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [i["shape"] for i in report["inputs"]] == [[6, 4], [6]]
    assert report["peak_bytes"] > 0
    assert main(["grad", mlp, str(tmp_path / "g.onnx"), "--of", "loss", "--input-shapes", "N=6"]) == 0
    assert shape_of(fg.load(tmp_path / "g.onnx"), "x_grad") == (6, 4)
    assert main(["opt", mlp, str(tmp_path / "o.msgpack"), "--input-shapes", "N=6"]) == 0
    assert shape_of(fg.load(tmp_path / "o.msgpack"), "logits") == (6, 3)
    capsys.readouterr()
    assert main(["run", mlp, "--input-shapes", "N=6"]) == 0
    assert "x       float32[6,4]" in capsys.readouterr().out
    assert main(["run", mlp, "--input-shapes", "N:6"]) == 0
    assert "x       float32[6,4]" in capsys.readouterr().out
    assert main(["run", mlp, "--input-shapes", "M:6"]) == 2
    assert "'M'" in capsys.readouterr().err
