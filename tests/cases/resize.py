"""Rows for Resize."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, const, fixed, normal

HALF = const([0.5, 0.5], "float32")
ODD = const([1.0, 1.0, 1.625, 0.625], "float32")


def _up(name: str, **attributes: Any) -> Case:
    return Case("Resize", [normal(1, 2, 5, 6), None, ODD], attributes, name=name)


def _to(name: str, **attributes: Any) -> Case:
    return Case("Resize", [normal(1, 2, 5, 6), None, None, const([1, 2, 8, 4])], attributes, name=name)


def _kernel(d: float, cubic: float | None) -> float:
    """The weight of a pixel at distance ``d``: Keys' cubic with the coefficient ``cubic``, or the linear hat."""
    d = abs(d)
    if cubic is None:
        return max(0.0, 1 - d)
    if d <= 1:
        return (cubic + 2) * d**3 - (cubic + 3) * d**2 + 1
    return cubic * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def _along(x: Array, places: list[float], cubic: float | None, shrink: float = 1.0, outside: bool = True) -> Array:
    """Sample the first axis of ``x`` at ``places``, pixel by pixel; ``outside`` repeats the edge beyond the image."""
    rows = []
    for at in places:
        near = [i for i in range(-12, len(x) + 12) if outside or 0 <= i < len(x)]
        weights = np.array([_kernel((i - at) * shrink, cubic) for i in near])
        pixels = np.clip(near, 0, len(x) - 1)
        rows.append(np.tensordot(weights / weights.sum(), x[pixels], 1))
    return np.stack(rows)


def _cubic(x: Array, roi: None, scales: Array, *, cubic_coeff_a: float = -0.75, antialias: int = 0,
           exclude_outside: int = 0, **_: Any) -> Array:
    """Cubic half_pixel: onnx.reference computes its weights in float32."""
    for axis in (2, 3):
        scale = float(scales[axis])
        places = [(o + 0.5) / scale - 0.5 for o in range(int(x.shape[axis] * scale))]
        turned = _along(np.moveaxis(x, axis, 0), places, cubic_coeff_a, min(scale, 1.0) if antialias else 1.0,
                        not exclude_outside)
        x = np.moveaxis(turned, 0, axis)
    return x


def _first_row(x: Array, *_: Any, **__: Any) -> Array:
    """A single place of pytorch_half_pixel is 0; onnx.reference has -0.5."""
    return x[:, :, :1]


def _crop(x: Array, roi: Array, scales: None, sizes: Array, *, extrapolation_value: float, **_: Any) -> Array:
    """Linear tf_crop_and_resize, where onnx.reference computes positions in float32."""
    y = np.empty((1, 1, 3, 3))
    for i, j in np.ndindex(3, 3):
        at = [float(roi[2 + d]) * 3 + o * (float(roi[6 + d]) - float(roi[2 + d])) * 3 / 2 for d, o in ((0, i), (1, j))]
        inside = all(0 <= a <= 3 for a in at)
        weights = [np.array([_kernel(k - a, None) for k in range(4)]) for a in at]
        y[0, 0, i, j] = weights[0] @ x[0, 0] @ weights[1] if inside else extrapolation_value
    return y


CASES: list[Case] = [
    Case("Resize", [normal(1, 2, 3, 4), None, const([1.0, 1.0, 2.0, 3.0], "float32")], name="nearest-whole"),
    *[_up(f"nearest-{mode}", nearest_mode=mode) for mode in ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor")],
    *[_up(f"linear-{mode}", mode="linear", coordinate_transformation_mode=mode)
      for mode in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")],
    _up("linear-antialias", mode="linear", antialias=1),
    *[Case("Resize", [normal(1, 2, 5, 6), None, ODD], {"mode": "cubic", **more}, name=f"cubic-{name}", expected=_cubic)
      for name, more in (("plain", {}), ("outside", dict(exclude_outside=1, cubic_coeff_a=-0.5)), ("antialias", dict(antialias=1)))],
    Case("Resize", [normal(1, 2, 3, 4), None, None, const([1, 2, 1, 4])],
         dict(mode="cubic", coordinate_transformation_mode="pytorch_half_pixel"), name="cubic-one", expected=_first_row),
    _to("sizes-linear", mode="linear"),
    _to("sizes-nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
    Case("Resize", [normal(1, 2, 4, 6), None, HALF], dict(mode="linear", axes=[2, 3]), name="axes-half"),
    Case("Resize", [normal(4, 6), None, None, const([7, 8])], dict(mode="linear", keep_aspect_ratio_policy="not_larger"),
         name="not-larger", symbolic=False),
    Case("Resize", [normal(1, 1, 4, 4), const([0.0, 0.0, 0.4, 0.6, 1.0, 1.0, 1.2, 1.7], "float32"), None, const([1, 1, 3, 3])],
         dict(mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=10.0), name="crop",
         expected=_crop),
    Case("Resize", [fixed([[[[1, 2], [3, 4]]]], "uint8"), None, const([1.0, 1.0, 2.0, 2.0], "float32")], name="bytes"),
    Case("ResizeGrad", [normal(1, 2, 8, 3), const([1, 2, 5, 6]), None, ODD], dict(mode="linear"), outputs=["x_bar"],
         reference=False),
    Case("ResizeGrad", [normal(1, 2, 4, 6), const([1, 2, 2, 2]), None, const([1.0, 1.0, 2.0, 3.0], "float32")],
         outputs=["x_bar"], reference=False, name="nearest"),
]
