"""Rows for the operators on signals."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, const, fixed, held, normal


def number(n: int, dtype: str = "int64", run_time: bool = False) -> Any:
    """An integer, constant or fed."""
    return (fixed if run_time else const)(n, dtype)


def frames(signal: Array, step: Array, window: Array | None = None, length: Array | None = None, *, onesided: int = 1) -> Array:
    """The transform of each frame, one after the other."""
    size = int(length) if length is not None else signal.shape[1] if window is None else len(window)
    whole = signal[..., 0] if signal.shape[-1] == 1 else signal[..., 0] + 1j * signal[..., 1]
    weights = np.ones(size) if window is None else window
    starts = range(0, signal.shape[1] - size + 1, int(step))
    spectra = np.stack([np.fft.fft(whole[:, s : s + size] * weights, axis=-1) for s in starts], axis=1)
    spectra = spectra[..., : size // 2 + 1] if onesided else spectra
    return np.stack([spectra.real, spectra.imag], axis=-1)


CASES: list[Case] = [
    *(Case("DFT", [normal(2, 5, parts)], {"inverse": inverse}, name=f"{name}-{way}")
      for parts, name in ((1, "real"), (2, "complex")) for inverse, way in ((0, "forward"), (1, "inverse"))),
    *(Case("DFT", [normal(2, 5, 2), number(length)], {"inverse": inverse}, name=f"{length}-points-{inverse}")
      for length in (3, 8) for inverse in (0, 1)),
    *(Case("DFT", [normal(4, 2, 1), number(length), number(0)], {"onesided": 1}, name=f"half-{length}")
      for length in (1, 3, 4, 7, 8)),
    *(Case("DFT", [normal(extent, 2, 2), number(length), number(-3)], {"onesided": 1, "inverse": 1},
           name=f"half-back-{length}-of-{extent}") for extent in (3, 5) for length in (1, 2, 5, 8)),
    Case("DFT", [normal(2, 4, 2)], {"onesided": 1, "inverse": 1}, name="half-back"),
    Case("DFT", [normal(2, 4, 3, 2), number(6, "int32", run_time=True), number(1, run_time=True)], name="run-time"),
    Case("DFT", [normal(4, 2, 2), number(5, run_time=True), number(0, run_time=True)], {"onesided": 1, "inverse": 1},
         name="half-back-run-time"),
    Case("DFT", [normal(4, 2, 1), number(3, run_time=True)], {"onesided": 1}, name="half-run-time"),
    Case("DFT", [normal(0, 4, 2)], name="nothing"),
    Case("DFT", [held(normal(2, 6, 1, dtype="float16"))], name="float16", second=False),
    Case("STFT", [normal(2, 11, 1), number(3), normal(4)], expected=frames),
    Case("STFT", [normal(1, 9, 1), number(2), normal(5), number(5)], {"onesided": 0}, name="whole", expected=frames),
    Case("STFT", [normal(2, 9, 2), number(4), None, number(3)], {"onesided": 0}, name="complex", expected=frames),
    Case("STFT", [normal(2, 9, 2), number(4), normal(4)], name="complex-half", expected=frames),
    Case("STFT", [normal(2, 6, 1), number(4)], name="one-frame", expected=frames),
    Case("STFT", [normal(2, 12, 1), number(2, "int32", run_time=True), normal(5), number(5, "int32", run_time=True)],
         name="run-time", expected=frames),
    Case("STFT", [normal(2, 3, 1), number(1), None, number(5)], name="too-short",
         expected=lambda x, *_: np.zeros((2, 0, 3, 2))),
    Case("MelWeightMatrix", [number(8), number(16), number(8192), const(0.0, "float32"), const(4096.0, "float32")]),
    Case("MelWeightMatrix", [number(4, "int32", run_time=True), number(64, "int32", run_time=True),
                             number(8000, "int32", run_time=True), fixed(20.0), fixed(4000.0)], {"output_datatype": 11},
         name="run-time"),
    Case("MelWeightMatrix", [number(40), number(16), number(8192), const(0.0, "float32"), const(100.0, "float32")],
         {"output_datatype": 7}, name="narrow-bands"),
]
