"""The error function and its complement on arrays, to the last bits of double precision, without allocations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowgrad.ir.graph import Array

ROWS, BLOCK = 5, 8192
"""Elements computed at a time, so that all scratch rows stay in the L1 and L2 caches."""

# Rational approximations in double precision (S. Moshier, Cephes): erf(x) = x T(x^2) / U(x^2) for |x| <= 1,
# erfc(x) = exp(-x^2) P(x) / Q(x) for 1 <= x < 8, erfc(x) = exp(-x^2) R(x) / S(x) beyond. U, Q and S are monic.
T = (9.60497373987051638749e0, 9.00260197203842689217e1, 2.23200534594684319226e3, 7.00332514112805075473e3,
     5.55923013010394962768e4)
U = (3.35617141647503099647e1, 5.21357949780152679795e2, 4.59432382970980127987e3, 2.26290000613890934246e4,
     4.92673942608635921086e4)
P = (2.46196981473530512524e-10, 5.64189564831068821977e-1, 7.46321056442269912687e0, 4.86371970985681366614e1,
     1.96520832956077098242e2, 5.26445194995477358631e2, 9.34528527171957607540e2, 1.02755188689515710272e3,
     5.57535335369399327526e2)
Q = (1.32281951154744992508e1, 8.67072140885989742329e1, 3.54937778887819891062e2, 9.75708501743205489753e2,
     1.82390916687909736289e3, 2.24633760818710981792e3, 1.65666309194161350182e3, 5.57535340817727675546e2)

# erf(x) = x A(x^2) / B(x^2) in single precision for |x| <= 4, beyond which it rounds to 1 (Eigen).
A = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
     -2.95459980854025e-03, -1.60960333262415e-02)
B = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02)


def _polynomial(coefficients: Sequence[float], x: Array, out: Array, *, monic: bool = False) -> None:
    """Write the polynomial with the highest coefficient first (a leading 1 left out if ``monic``) at ``x``."""
    first, *rest = coefficients
    if monic:
        np.add(x, first, out=out)
    else:
        np.multiply(x, first, out=out)
        np.add(out, rest.pop(0), out=out)
    for c in rest:
        np.multiply(out, x, out=out)
        np.add(out, c, out=out)


def erf_into(x: Array, out: Array, work: Array | None = None) -> None:
    """Write erf(x) to ``out``; ``work`` is float64 scratch of shape (ROWS, BLOCK), allocated if not given."""
    scratch = np.empty((ROWS, min(BLOCK, max(x.size, 1)))) if work is None else work
    width = scratch.shape[1]
    source = x.reshape(-1)
    target = out.reshape(-1) if out.flags.c_contiguous else np.empty(out.size, out.dtype)
    single = x.dtype == np.float32 and target.dtype == np.float32
    narrow = scratch.view(np.float32)
    for start in range(0, x.size, width):
        piece, place = source[start : start + width], target[start : start + width]
        if single:
            _erf_block_single(piece, place, narrow[:, : piece.size])
        else:
            _erf_block(piece, place, scratch[:, : piece.size])
    if not out.flags.c_contiguous:
        np.copyto(out, target.reshape(out.shape))


def _erf_block(x: Array, out: Array, rows: Array) -> None:
    square, size, outer, inner, divisor = rows
    np.absolute(x, out=size)
    np.minimum(size, 6.0, out=size)  # erf is 1 to the last bit from there on; NaN stays
    np.multiply(size, size, out=square)
    _polynomial(P, size, outer)
    _polynomial(Q, size, divisor, monic=True)
    np.divide(outer, divisor, out=outer)
    np.negative(square, out=divisor)
    np.exp(divisor, out=divisor)
    np.multiply(outer, divisor, out=outer)
    np.subtract(1.0, outer, out=outer)
    _polynomial(T, square, inner)
    _polynomial(U, square, divisor, monic=True)
    np.divide(inner, divisor, out=inner)
    np.multiply(inner, size, out=inner)
    is_inner = square.view(np.bool_)[: x.size]  # the squares are no longer needed
    np.less_equal(size, 1.0, out=is_inner)
    np.copyto(outer, inner, where=is_inner)
    np.copysign(outer, x, out=out, casting="same_kind")


def _erf_block_single(x: Array, out: Array, rows: Array) -> None:
    clamped, square, top, bottom, _ = rows
    np.maximum(x, -4, out=clamped)
    np.minimum(clamped, 4, out=clamped)
    np.multiply(clamped, clamped, out=square)
    _polynomial(A, square, top)
    _polynomial(B, square, bottom)
    np.divide(top, bottom, out=top)
    np.multiply(top, clamped, out=out)
