"""Rows for Resize."""

from __future__ import annotations

from typing import Any

from tests.op_cases import Case, const, fixed, normal

HALF = const([0.5, 0.5], "float32")
ODD = const([1.0, 1.0, 1.625, 0.625], "float32")


def _up(name: str, **attributes: Any) -> Case:
    return Case("Resize", [normal(1, 2, 5, 6), None, ODD], attributes, name=name)


def _to(name: str, **attributes: Any) -> Case:
    return Case("Resize", [normal(1, 2, 5, 6), None, None, const([1, 2, 8, 4])], attributes, name=name)


CASES: list[Case] = [
    Case("Resize", [normal(1, 2, 3, 4), None, const([1.0, 1.0, 2.0, 3.0], "float32")], name="nearest-whole"),
    *[_up(f"nearest-{mode}", nearest_mode=mode) for mode in ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor")],
    *[_up(f"linear-{mode}", mode="linear", coordinate_transformation_mode=mode)
      for mode in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")],
    _up("cubic", mode="cubic"),
    _up("cubic-outside", mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
    _up("linear-antialias", mode="linear", antialias=1),
    _up("cubic-antialias", mode="cubic", antialias=1),
    _to("sizes-linear", mode="linear"),
    _to("sizes-nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
    Case("Resize", [normal(1, 2, 4, 6), None, HALF], dict(mode="linear", axes=[2, 3]), name="axes-half"),
    Case("Resize", [normal(4, 6), None, None, const([7, 8])], dict(mode="linear", keep_aspect_ratio_policy="not_larger"),
         name="not-larger", symbolic=False),
    Case("Resize", [normal(1, 1, 4, 4), const([0.0, 0.0, 0.4, 0.6, 1.0, 1.0, 1.2, 1.7], "float32"), None, const([1, 1, 3, 3])],
         dict(mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=10.0), name="crop"),
    Case("Resize", [fixed([[[[1, 2], [3, 4]]]], "uint8"), None, const([1.0, 1.0, 2.0, 2.0], "float32")], name="bytes"),
    Case("ResizeGrad", [normal(1, 2, 8, 3), const([1, 2, 5, 6]), None, ODD], dict(mode="linear"), outputs=["x_bar"],
         reference=False),
    Case("ResizeGrad", [normal(1, 2, 4, 6), const([1, 2, 2, 2]), None, const([1.0, 1.0, 2.0, 3.0], "float32")],
         outputs=["x_bar"], reference=False, name="nearest"),
]
