"""The recurrence of RNN, GRU and LSTM, written once over a set of operators: NumPy's, or nodes made by a builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array

Function = Callable[[Any, Any], Any]
"""Takes a set of operators and an operand."""


class NumericOps:
    """The operators of the recurrence on arrays, under their ONNX names."""

    Add, Sub, Mul, Div, MatMul, Abs, Tanh = np.add, np.subtract, np.multiply, np.divide, np.matmul, np.abs, np.tanh

    @staticmethod
    def Sigmoid(x: Array) -> Array:
        """Return 1 / (1 + exp(-x)) without overflow."""
        y = np.tanh(x * 0.5)
        y *= 0.5
        y += 0.5
        return y

    @staticmethod
    def Relu(x: Array) -> Array:
        """Return max(x, 0)."""
        return np.maximum(x, 0)

    @staticmethod
    def LeakyRelu(x: Array, *, alpha: float) -> Array:
        """Return x, or alpha x below zero."""
        return np.where(x < 0, x * alpha, x)

    @staticmethod
    def ThresholdedRelu(x: Array, *, alpha: float) -> Array:
        """Return x above alpha, else zero."""
        return np.where(x > alpha, x, np.zeros((), x.dtype))

    @staticmethod
    def Elu(x: Array, *, alpha: float) -> Array:
        """Return x, or alpha (exp(x) - 1) below zero."""
        return np.where(x < 0, np.expm1(np.minimum(x, 0)) * alpha, x)

    @staticmethod
    def HardSigmoid(x: Array, *, alpha: float, beta: float) -> Array:
        """Return alpha x + beta between 0 and 1."""
        return np.clip(x * alpha + beta, 0, 1)

    @staticmethod
    def Softplus(x: Array) -> Array:
        """Return log(1 + exp(x))."""
        return np.logaddexp(x, np.zeros((), x.dtype))

    @staticmethod
    def Clip(x: Array, low: float, high: float) -> Array:
        """Return x between ``low`` and ``high``."""
        return np.clip(x, low, high)

    @staticmethod
    def parts(x: Array, count: int) -> list[Array]:
        """Return equal parts along the last axis."""
        return np.split(x, count, axis=-1)


class GraphOps:
    """The same operators as nodes."""

    def __init__(self, b: Builder) -> None:
        self.b = b

    def __getattr__(self, name: str) -> Any:
        return getattr(self.b, name)

    def parts(self, x: Any, count: int) -> list[Any]:
        """Return equal parts along the last axis."""
        if count == 1:
            return [x]
        return list(self.b.add_several("Split", [x], {"axis": -1, "num_outputs": count}, outputs=count))


# ---- activations --------------------------------------------------------------------------------------------------------

_PLAIN = ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus")
_SINGLE = {"LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "Elu": 1.0}
_DOUBLE = {"HardSigmoid": (0.2, 0.5), "Affine": (1.0, 0.0), "ScaledTanh": (1.0, 1.0)}
_BY_NAME = {name.lower(): name for name in (*_PLAIN, *_SINGLE, *_DOUBLE)}


def activations(names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]) -> list[Function]:
    """Return the functions called ``names``; those with parameters take them in order from ``alphas`` and ``betas``.

    Raises ValidationError for a name that the standard does not have.
    """
    left_alphas, left_betas = list(alphas), list(betas)
    found = []
    for given in names:
        name = _BY_NAME.get(given.lower())
        if name is None:
            raise ValidationError(f"no activation {given!r}; known: {', '.join(sorted(_BY_NAME.values()))}",
                                  code="attribute")
        alpha, beta = _DOUBLE.get(name, (_SINGLE.get(name, 0.0), 0.0))
        if name not in _PLAIN and left_alphas:
            alpha = left_alphas.pop(0)
        if name in _DOUBLE and left_betas:
            beta = left_betas.pop(0)
        found.append(_function(name, float(alpha), float(beta)))
    return found


def _function(name: str, alpha: float, beta: float) -> Function:
    if name == "Affine":
        return lambda o, x: o.Add(o.Mul(x, alpha), beta)
    if name == "ScaledTanh":
        return lambda o, x: o.Mul(o.Tanh(o.Mul(x, beta)), alpha)
    if name == "Softsign":
        return lambda o, x: o.Div(x, o.Add(o.Abs(x), 1.0))
    if name == "HardSigmoid":
        return lambda o, x: o.HardSigmoid(x, alpha=alpha, beta=beta)
    if name in _SINGLE:
        return lambda o, x: getattr(o, name)(x, alpha=alpha)
    return lambda o, x: getattr(o, name)(x)


# ---- cells --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What one direction of a recurrent op computes in a step, apart from weights.

    ``functions`` are its activations, ``clip`` bounds what goes into them (None: no bound).
    """

    functions: tuple[Function, ...]
    clip: float | None = None
    coupled: bool = False
    reset_after: bool = False

    def apply(self, o: Any, index: int, x: Any) -> Any:
        """Return an activation of ``x``, bounded first."""
        bounded = x if self.clip is None else o.Clip(x, -self.clip, self.clip)
        return self.functions[index](o, bounded)


def rnn_step(cell: Cell, o: Any, x: Any, states: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
    """h' = f(x + h r), with x = X_t W + biases."""
    (h,), (r,) = states, weights
    return [cell.apply(o, 0, o.Add(x, o.MatMul(h, r)))]


def gru_step(cell: Cell, o: Any, x: Any, states: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
    """h' = (1 - z) h~ + z h, with z, s = f(x_zs + h r_zs) and h~ = g(x_h + (s h) r_h).

    With ``reset_after``, h~ = g(x_h + s (h r_h + c)) for the bias c of the recurrence.
    """
    (h,), (r_gates, r_hidden, *bias) = states, weights
    x_update, x_reset, x_hidden = o.parts(x, 3)
    h_update, h_reset = o.parts(o.MatMul(h, r_gates), 2)
    update = cell.apply(o, 0, o.Add(x_update, h_update))
    reset = cell.apply(o, 0, o.Add(x_reset, h_reset))
    if cell.reset_after:
        product = o.MatMul(h, r_hidden)
        recurrent = o.Mul(reset, o.Add(product, bias[0]) if bias else product)
    else:
        recurrent = o.MatMul(o.Mul(reset, h), r_hidden)
    candidate = cell.apply(o, 1, o.Add(x_hidden, recurrent))
    return [o.Add(candidate, o.Mul(update, o.Sub(h, candidate)))]


def lstm_step(cell: Cell, o: Any, x: Any, states: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
    """c' = f c + i g(..), h' = o h(c'), with the gates i, o, f = f(x + h r + p c); o sees c'. ``coupled``: f = 1 - i."""
    (h, c), (r, *peephole) = states, weights
    gate_i, gate_o, gate_f, gate_c = o.parts(o.Add(x, o.MatMul(h, r)), 4)
    p_i, p_o, p_f = peephole or (None, None, None)
    enter = cell.apply(o, 0, _seen(o, gate_i, p_i, c))
    candidate = cell.apply(o, 1, gate_c)
    if cell.coupled:
        cell_state = o.Add(c, o.Mul(enter, o.Sub(candidate, c)))
    else:
        forget = cell.apply(o, 0, _seen(o, gate_f, p_f, c))
        cell_state = o.Add(o.Mul(forget, c), o.Mul(enter, candidate))
    leave = cell.apply(o, 0, _seen(o, gate_o, p_o, cell_state))
    return [o.Mul(leave, cell.functions[2](o, cell_state)), cell_state]


def _seen(o: Any, gate: Any, peephole: Any, c: Any) -> Any:
    return gate if peephole is None else o.Add(gate, o.Mul(peephole, c))
