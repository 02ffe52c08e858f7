"""Resize where the scaled extent is no whole number: exported value and derivative say the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.exchange.lowering import lowered
from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.types import FLOAT32, FLOAT64, INT32, Dim, DType, Type

ROI = np.array([0, 0, 0.1, 0.2, 1, 1, 0.9, 1.1], np.float32)


def resize(scale: float, *, dtype: DType = FLOAT32, width: Dim | int = 7, **attributes: Any) -> Graph:
    graph = Graph("resize")
    x = graph.add_input("x", Type(dtype, (1, 1, 5, width)))
    scales = np.array([1, 1, 0.7, scale], np.float32)
    roi = ROI if attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize" else None
    graph.add_output(Builder(graph).Resize(x, roi, scales, **attributes), "y")
    return graph


def check_exported(graph: Graph, expected: Array | None, x: Array) -> None:
    """Check that in onnxruntime <x_grad, x> = <y, y_grad>: Resize is linear where nothing lies beyond the input."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(fg.vjp(fg.Model(graph)).to_onnx().SerializeToString())
    shape = fg.Model(graph)(x=x)["y"].shape
    y_bar = np.asarray(np.random.default_rng(1).standard_normal(shape), x.dtype)
    y, x_bar = session.run(["y", "x_grad"], {"x": x, "y_grad": y_bar})
    np.testing.assert_allclose(np.vdot(x_bar, x), np.vdot(y, y_bar), rtol=1e-4)
    if expected is not None:
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("coordinates", ["align_corners", "tf_crop_and_resize"])
def test_a_cut_extent_is_exported_as_it_is_computed(coordinates: str, mode: str) -> None:
    graph = resize(1.3, coordinate_transformation_mode=coordinates, mode=mode)
    assert "Resize" not in {n.op for n in lowered(graph).nodes()}
    x = np.random.default_rng(0).standard_normal((1, 1, 5, 7)).astype(np.float32)
    check_exported(graph, fg.Model(graph)(x=x)["y"], x)


def test_what_lies_beyond_a_crop_is_exported_too() -> None:
    graph = resize(1.3, dtype=FLOAT64, coordinate_transformation_mode="tf_crop_and_resize", mode="linear", extrapolation_value=9.0)
    x = np.arange(35.0).reshape(1, 1, 5, 7)
    got = fg.Model(lowered(graph))(x=x)["y"]
    assert (got == 9).any()
    np.testing.assert_allclose(got, fg.Model(graph)(x=x)["y"])


def test_a_cut_extent_known_at_run_time_only_is_sampled_the_same_way_forward_and_backward() -> None:
    graph = resize(1.3, width=Dim.named("W"), coordinate_transformation_mode="align_corners", mode="linear")
    check_exported(graph, None, np.random.default_rng(0).standard_normal((1, 1, 5, 7)).astype(np.float32))


@pytest.mark.parametrize(("scale", "dtype", "attributes"), [
    (2.0, FLOAT32, {"coordinate_transformation_mode": "align_corners"}), (1.3, FLOAT32, {"mode": "linear"}),
    (1.3, INT32, {"coordinate_transformation_mode": "align_corners"}),
])
def test_what_runtimes_do_alike_stays(scale: float, dtype: DType, attributes: dict[str, Any]) -> None:
    graph = resize(scale, dtype=dtype, **attributes)
    if scale == 2.0:
        graph = Graph("whole")
        x = graph.add_input("x", Type(dtype, (1, 1, 5, 7)))
        graph.add_output(Builder(graph).Resize(x, None, np.array([1, 1, 2, 2], np.float32), **attributes), "y")
    assert "Resize" in {n.op for n in lowered(graph).nodes()}


def test_the_nearest_place_is_found_in_the_type_of_scales() -> None:
    """The twelfth place is the border 12 / 2.4 = 5; divided in float64 by the float32 nearest to 2.4, it lies before it."""
    graph = Graph("nearest")
    x = graph.add_input("x", Type(FLOAT32, (6,)))
    graph.add_output(Builder(graph).Resize(x, None, np.array([2.4], np.float32), nearest_mode="floor",
                                           coordinate_transformation_mode="asymmetric"), "y")
    got = fg.Model(graph)(x=np.arange(6, dtype=np.float32))["y"]
    np.testing.assert_array_equal(got, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5])


def test_an_extent_that_comes_out_as_it_was_is_sampled_in_runtimes_too() -> None:
    """onnxruntime copies where no extent changes, whatever the scales."""
    graph = Graph("same")
    x = graph.add_input("x", Type(FLOAT32, (1, 1, 9)))
    graph.add_output(Builder(graph).Resize(x, None, np.array([1, 1, 1.1], np.float32), mode="linear"), "y")
    array = np.random.default_rng(0).standard_normal((1, 1, 9)).astype(np.float32)
    check_exported(graph, fg.Model(graph)(x=array)["y"], array)
