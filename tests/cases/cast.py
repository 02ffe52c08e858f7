"""Rows for the conversions between element types."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.op_cases import Case, fixed, normal

NUMBERS = [-300.7, -2.5, -1.0, -0.0, 0.0, 0.6, 1.0, 2.5, 100.2]
WIDE = [-1e9, -500.0, -448.0, -0.3, 0.0, 0.017, 1.0, 17.0, 448.0, 470.0, 60000.0, 1e9, float("nan")]
NAN_UNEQUAL: dict[str, Any] = {"symbolic": False, "note": "NumPy does not take the NaN of narrow types as equal"}
INF = float("inf")

FLOATS = [Case("Cast", [normal(3, 4)], {"to": 1}, name="to-float32", smooth=False,
               note="differences of float32 are too coarse"),
          Case("Cast", [normal(3, 4)], {"to": 11}, name="to-float64"),
          Case("Cast", [normal(3, 4, dtype="float32")], {"to": 11}, name="from-float32"),
          Case("Cast", [fixed(WIDE)], {"to": 10}, name="to-float16", smooth=False, note="overflows"),
          Case("Cast", [fixed(WIDE, "float32")], {"to": 16}, name="to-bfloat16", **NAN_UNEQUAL)]
WHOLE = [Case("Cast", [fixed(NUMBERS)], {"to": to}, name=f"to-{to}") for to in (3, 5, 6, 7, 9, 11)
         if to != 3] + [
         Case("Cast", [fixed([-2.5, 2.5, 7.9])], {"to": 3}, name="to-int8"),
         Case("Cast", [fixed([-300, 300, 70000], "int64")], {"to": 2}, name="int-wraps"),
         Case("Cast", [fixed([True, False])], {"to": 1}, name="from-bool"),
         Case("Cast", [fixed([0, 1, 7, -8], "int64")], {"to": 22}, name="to-int4"),
         Case("Cast", [fixed([0, 1, 7, 15], "int64")], {"to": 21}, name="to-uint4"),
         Case("Cast", [fixed([0, 1, 7], "int32")], {"to": 7}, name="int-widens")]
EIGHTHS = [Case("Cast", [fixed(WIDE, "float32")], {"to": to, "saturate": s}, name=f"to-{to}-saturate{s}", **NAN_UNEQUAL)
           for to in (17, 18, 19, 20) for s in (0, 1)] + [
           Case("Cast", [fixed([INF, -INF], "float32")], {"to": to, "saturate": 1}, name=f"inf-to-{to}")
           for to in (17, 18, 19, 20)] + [
           Case("Cast", [fixed([0.1, 1.0, 1.1, 1.5, 3.0, 3.1, 1e30, INF], "float32")],
                {"to": 24, "round_mode": mode}, name=f"to-power-{mode}", **NAN_UNEQUAL) for mode in ("up", "down", "nearest")]
STRINGS = [Case("Cast", [fixed(np.array(["1.5", "NaN", "-INF", "3"], object))], {"to": 1}, name="from-string"),
           Case("Cast", [fixed(np.array(["15", "-3"], object))], {"to": 7}, name="int-from-string"),
           Case("Cast", [fixed([1.5, 3.0, -0.25], "float32")], {"to": 8}, name="to-string", reference=False,
                expected=lambda x, to: np.array(["1.5", "3.0", "-0.25"], object))]
LIKE = [Case("CastLike", [normal(3, 4), normal(2)]),
        Case("CastLike", [fixed(NUMBERS), fixed([1], "int32")], name="to-int"),
        Case("CastLike", [fixed([2, 3], "int32"), normal(1)], name="from-int")]

CASES: list[Case] = [*FLOATS, *WHOLE, *EIGHTHS, *STRINGS, *LIKE]
