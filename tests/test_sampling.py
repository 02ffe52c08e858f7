"""Images read between pixels: expansions against kernels, and what lies far out or is no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import LimitError, RunError, ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.types import FLOAT64, Dim, Type, type_of
from flowgrad.passes.differentiate import with_adjoint
from flowgrad.passes.expand import expand
from tests.cases import folding, regions, sampling
from tests.op_cases import Case, forms

CASES = [c for c in (*sampling.CASES, *regions.CASES, *folding.CASES) if opdef(c.op).expansion_rule is not None]


@pytest.mark.parametrize(("case", "symbolic"), forms(CASES))
def test_expansions_give_what_kernels_give(case: Case, symbolic: bool) -> None:
    arrays = case.arrays()
    graph, _ = case.graph(arrays, symbolic)
    feeds = case.feeds(arrays)
    expected = evaluate(graph, feeds)
    expand(graph, lambda node: node.op == case.op)
    assert not [n for n in graph.nodes() if n.op == case.op]
    for got, wanted in zip(evaluate(graph, feeds).values(), expected.values(), strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def sampled(x: Array, grid: Array, **attributes: Any) -> tuple[Graph, dict[str, Array]]:
    graph = Graph("sampled")
    feeds = {"x": x, "grid": grid}
    graph.add_output(Builder(graph).GridSample(*(graph.add_input(k, type_of(a)) for k, a in feeds.items()), **attributes), "y")
    return graph, feeds


FAR = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 3.0])


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_positions_far_out(mode: str, padding: str) -> None:
    """They see nothing, or the edge, and the image gets a cotangent for that; one that is no number sees nothing either."""
    places = FAR if padding == "zeros" else FAR[3:]
    grid = np.stack([places, np.zeros(len(places))], -1)[None, None]
    image = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    graph, feeds = sampled(image, grid, mode=mode, padding_mode=padding)
    y = evaluate(graph, feeds)["y"].reshape(-1)
    np.testing.assert_allclose(y, np.zeros(6) if padding == "zeros" else np.array([6.0, 4.0, 6.0]), atol=1e-12)
    joint = with_adjoint(graph, ["x"])
    seeds = {name: np.ones((1, 1, 1, len(places))) for name in joint.inputs.values()}
    x_bar = evaluate(joint.graph, {**feeds, **seeds})[joint.outputs["x"]]
    expected = np.zeros((3, 3))
    if padding == "border":
        expected[1] = [1.0, 0.0, 2.0]
    np.testing.assert_allclose(x_bar.reshape(3, 3), expected, atol=1e-12)


@pytest.mark.parametrize("grid", [(1, 2, 2, 2), (2, 2, 2, 3)])
def test_grids_that_do_not_fit_are_refused(grid: tuple[int, ...]) -> None:
    arrays = np.ones((2, 1, 3, 3)), np.zeros(grid)
    with pytest.raises(ValidationError):
        sampled(*arrays)
    graph = Graph("open")
    values = [graph.add_input(f"x{i}", type_of(a).with_shape([Dim.named(f"n{i}{d}") for d in range(4)]))
              for i, a in enumerate(arrays)]
    graph.add_output(Builder(graph).GridSample(*values), "y")
    with pytest.raises(RunError, match="has no positions"):
        evaluate(graph, {"x0": arrays[0], "x1": arrays[1]})


def test_there_is_nothing_between_integers() -> None:
    with pytest.raises(ValidationError, match="needs floats"):
        sampled(np.ones((1, 1, 2, 2), np.uint8), np.zeros((1, 1, 1, 2)))


def test_texts_can_be_read_at_the_nearest_place() -> None:
    words = np.array([["a", "b"], ["c", "d"]], object).reshape(1, 1, 2, 2)
    graph, feeds = sampled(words, np.array([[-0.5, 0.5], [9.0, 0.0]]).reshape(1, 1, 2, 2), mode="nearest")
    assert evaluate(graph, feeds)["y"].reshape(-1).tolist() == ["c", ""]


def test_pixels_beyond_the_image_are_zeros_beside_any_pixel() -> None:
    """The edge stands in for them in the kernel, and may hold what makes NaN of a product with 0."""
    image = np.full((1, 1, 2, 2), np.inf)
    graph, feeds = sampled(image, np.array([[5.0, 0.0], [-5.0, -5.0]]).reshape(1, 1, 2, 2))
    assert evaluate(graph, feeds)["y"].reshape(-1).tolist() == [0.0, 0.0]
    for mode in ("avg", "max"):
        graph = Graph("regions")
        feeds = {"x": image, "rois": np.array([[-9.0, -9.0, -5.0, -5.0]]), "images": np.array([0])}
        values = [graph.add_input(name, type_of(a)) for name, a in feeds.items()]
        graph.add_output(Builder(graph).RoiAlign(*values, mode=mode), "y")
        assert evaluate(graph, feeds)["y"].reshape(-1).tolist() == [0.0]


@pytest.mark.parametrize("attributes", [{"sampling_ratio": 2**40}, {}], ids=["said", "adaptive"])
def test_regions_of_absurdly_many_cells_pass_a_limit(attributes: dict[str, int]) -> None:
    graph = Graph("regions")
    feeds = {"x": np.ones((1, 1, 2, 2)), "rois": np.array([[0.0, 0.0, 1e13, 1e13]]), "images": np.array([0])}
    values = [graph.add_input(name, type_of(a)) for name, a in feeds.items()]
    graph.add_output(Builder(graph).RoiAlign(*values, **attributes), "y")
    with pytest.raises(LimitError, match="cells"):
        evaluate(graph, feeds)


def test_columns_with_absurd_pads_pass_a_limit() -> None:
    graph = Graph("columns")
    b = Builder(graph)
    x = graph.add_input("x", Type(FLOAT64, (1, 1, 4)))
    graph.add_output(b.Col2Im(x, [2, 2], [1, 1], pads=(0, 0, 2**40, 2**40), strides=(2**40, 2**40)), "y")
    with pytest.raises(LimitError, match="in its pads"):
        evaluate(graph, {"x": np.ones((1, 1, 4))})
