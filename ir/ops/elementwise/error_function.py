"""The error function and its complement on arrays, to the last bits of double precision, without allocations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowgrad.ir.graph import Array

ROWS, BLOCK = 5, 16384
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

# erf(x) = 1 - exp(-x V(x)) for x >= 0 in single precision, where V is fitted to -log(erfc(x)) / x on [0, 3.95].
V = (-9.256479643227067e-06, 0.00011764308874262497, -0.0006328430026769638, 0.0016670379554852843,
     -0.0001604058052180335, -0.019153058528900146, 0.10277783125638962, 0.6366193890571594, 1.128379225730896)


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
    source = x.reshape(-1)
    target = out.reshape(-1) if out.flags.c_contiguous else np.empty(out.size, out.dtype)
    single = x.dtype == np.float32 and target.dtype == np.float32
    rows, block = (scratch.view(np.float32), _erf_block_single) if single else (scratch, _erf_block)
    width = rows.shape[1]
    for start in range(0, x.size, width):
        piece = source[start : start + width]
        block(piece, target[start : start + width], rows[:, : piece.size])
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
    size, result = rows[:2]
    np.absolute(x, out=size)
    np.minimum(size, 3.95, out=size)  # erf rounds to 1 from there on; NaN stays
    _polynomial(V, size, result)
    np.multiply(result, size, out=result)
    np.negative(result, out=result)
    np.expm1(result, out=result)
    np.copysign(result, x, out=out)
