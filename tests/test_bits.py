"""Bits of numbers: no derivative passes them, and none is silently left out."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import NotDifferentiableError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.types import FLOAT32, Type
from flowgrad.passes.differentiate import with_adjoint, with_tangent


def graph_of(cast_back: bool, used: str) -> Graph:
    """x times a number that is made of the bits of x, or of whether they are those of a negative number."""
    graph = Graph("bits")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT32, (3,)))
    bits = b.BitCast(x, to=TensorProto.INT32)
    if used == "sign":
        factor: Value = b.cast(b.Less(bits, 0), FLOAT32)
    else:
        moved = b.Sub(bits, 1 << 23)
        factor = b.BitCast(moved, to=TensorProto.FLOAT) if cast_back else b.cast(moved, FLOAT32)
    graph.add_output(b.Mul(x, factor), "y")
    return graph


@pytest.mark.parametrize("cast_back", [True, False])
@pytest.mark.parametrize("transform", [with_adjoint, with_tangent])
def test_bits_that_become_a_number_again_refuse(cast_back: bool, transform: object) -> None:
    assert callable(transform)
    with pytest.raises(NotDifferentiableError, match="BitCast"):
        transform(graph_of(cast_back, "number"))


def test_a_condition_on_bits_chooses() -> None:
    joint = with_adjoint(graph_of(False, "sign"))
    feeds = {"x": np.array([-2.0, 1.0, -0.5], np.float32), "y_ct": np.ones(3, np.float32)}
    assert evaluate(joint.graph, feeds)["x_grad"].tolist() == [1, 0, 1]
