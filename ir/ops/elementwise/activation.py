"""Activation functions. Kernels are stable for large arguments and take scratch buffers instead of allocating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, pointwise, together
from flowgrad.ir.builder import Builder
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.arithmetic import BROADCASTS, at, computed, select, slope, zero
from flowgrad.ir.ops.elementwise.error_function import BLOCK, ROWS, erf_into
from flowgrad.ir.ops.operands import sum_of
from flowgrad.ir.ops.registry import FLOWGRAD, Trait, attr, like_first, op
from flowgrad.ir.types import BOOL, FLOAT64, Type

UNARY = (Trait.ELEMENTWISE,)
Work = Sequence[Array] | None


def _single(number: float) -> float:
    """Return what the standard's single-precision attributes hold for ``number``."""
    return float(np.float32(number))


def _buffer(x: Array, out: Array | None) -> Array:
    return np.empty_like(x) if out is None else out


def _scratch(x: Array, work: Work) -> Array:
    return work[0] if work else np.empty_like(x)


def _one_like_first(node: Node) -> list[Type]:
    return [computed(node.input(0).type)]


# ---- piecewise linear ---------------------------------------------------------------------------------------------------


@op("Relu", since=6, traits=UNARY, in_place=True)
def relu(x: Array, *, out: Array | None = None) -> Array:
    return np.maximum(x, 0, out=out)


@slope(relu)
def _(b: DerivativeBuilder, node: Node, v: Value) -> Any:
    """v where x > 0, else 0."""
    return select(b, b.Greater(node.output(), 0.0), v)


@relu.kinks
def _(b: Builder, node: Node) -> Value:
    """At 0."""
    return at(b, node.input(0), 0.0)


@op("LeakyRelu", since=6, traits=UNARY)
def leaky_relu(x: Array, *, alpha: float = _single(0.01), out: Array | None = None) -> Array:
    if alpha == 0:
        return np.maximum(x, 0, out=out)
    scaled = np.multiply(x, alpha, out=_buffer(x, out))
    return np.maximum(x, scaled, out=out) if alpha <= 1 else np.minimum(x, scaled, out=out)


@slope(leaky_relu)
def _(b: DerivativeBuilder, node: Node, v: Value) -> Any:
    """v where x > 0, else alpha v."""
    return b.Where(b.Greater(node.input(0), 0.0), v, b.Mul(v, float(attr(node, "alpha"))))


@leaky_relu.kinks
def _(b: Builder, node: Node) -> Value:
    """At 0."""
    return at(b, node.input(0), 0.0)


@op("PRelu", since=9, traits=BROADCASTS)
def prelu(x: Array, slope: Array, *, out: Array | None = None) -> Array:
    result = np.multiply(x, slope, out=_buffer(x, out))
    np.copyto(result, x, where=x >= 0)
    return result


prelu.types(like_first)


@prelu.adjoint
def _(b: DerivativeBuilder, node: Node, y_bar: Value) -> Any:
    """x_bar = y_bar where x > 0, else slope y_bar; slope_bar = x y_bar where x <= 0."""
    x, factor = node.inputs
    positive = b.Greater(x, 0.0)
    nothing = zero(b, y_bar)
    return b.Where(positive, y_bar, b.Mul(y_bar, factor)), b.Where(positive, nothing, b.Mul(y_bar, x))


@prelu.tangent
def _(b: DerivativeBuilder, node: Node, x_dot: Value | None, slope_dot: Value | None) -> Any:
    """y_dot = x_dot where x > 0, else slope x_dot + slope_dot x."""
    x, factor = node.input(0), node.input(1)
    nothing = zero(b, x)
    terms = [] if x_dot is None else [b.Mul(x_dot, factor)]
    terms += [] if slope_dot is None else [b.Mul(slope_dot, x)]
    negative = sum_of(b, terms)
    return b.Where(b.Greater(x, 0.0), nothing if x_dot is None else x_dot, negative)


@prelu.kinks
def _(b: Builder, node: Node) -> Value:
    """At 0."""
    return at(b, node.input(0), 0.0)


@op("ThresholdedRelu", since=10, traits=UNARY)
def thresholded_relu(x: Array, *, alpha: float = 1.0, out: Array | None = None) -> Array:
    result = _buffer(x, out)
    np.copyto(result, 0)
    np.copyto(result, x, where=x > alpha)
    return result


@slope(thresholded_relu)
def _(b: DerivativeBuilder, node: Node, v: Value) -> Any:
    """v where x > alpha, else 0."""
    return select(b, b.Greater(node.input(0), float(attr(node, "alpha"))), v)


@thresholded_relu.kinks
def _(b: Builder, node: Node) -> Value:
    """At the threshold."""
    return at(b, node.input(0), float(attr(node, "alpha")))


@op("HardSigmoid", since=6, traits=UNARY)
def hard_sigmoid(x: Array, *, alpha: float = _single(0.2), beta: float = 0.5, out: Array | None = None) -> Array:
    result = np.multiply(x, alpha, out=_buffer(x, out))
    np.add(result, beta, out=result)
    np.maximum(result, 0, out=result)
    return np.minimum(result, 1, out=result)


@slope(hard_sigmoid)
def _(b: DerivativeBuilder, node: Node, v: Value) -> Any:
    """alpha v where 0 < y < 1, else 0."""
    y = node.output()
    inside = b.And(b.Greater(y, 0.0), b.Less(y, 1.0))
    return select(b, inside, b.Mul(v, float(attr(node, "alpha"))))


@hard_sigmoid.kinks
def _(b: Builder, node: Node) -> Value:
    """Where the line meets 0 and 1."""
    line = b.Add(b.Mul(node.input(0), float(attr(node, "alpha"))), float(attr(node, "beta")))
    return at(b, line, 0.0, 1.0)


@op("HardSwish", since=14, traits=UNARY)
def hard_swish(x: Array, *, out: Array | None = None) -> Array:
    result = np.multiply(x, 1 / 6, out=_buffer(x, out))
    np.add(result, 0.5, out=result)
    np.maximum(result, 0, out=result)
    np.minimum(result, 1, out=result)
    return np.multiply(result, x, out=result)


@slope(hard_swish)
def _(b: DerivativeBuilder, node: Node, v: Value) -> Any:
    """v where x >= 3, (x / 3 + 1 / 2) v where -3 < x < 3, else 0."""
    x = node.input(0)
    middle = b.Mul(v, b.Add(b.Mul(x, 1 / 3), 0.5))
    return b.Where(b.GreaterOrEqual(x, 3.0), v, select(b, b.Greater(x, -3.0), middle))


@hard_swish.kinks
def _(b: Builder, node: Node) -> Value:
    """At -3 and 3."""
    return at(b, node.input(0), -3.0, 3.0)


@op("Shrink", since=9, outputs=("output",), traits=UNARY)
def shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5, out: Array | None = None) -> Array:
    result = _buffer(x, out)
    np.copyto(result, 0)
    np.subtract(x, bias, out=result, where=x > lambd, casting="unsafe")
    np.add(x, bias, out=result, where=x < -lambd, casting="unsafe")
    return result


@slope(shrink)
def _(b: DerivativeBuilder, node: Node, v: Value) -> Any:
    """v where x < -lambd or x > lambd, else 0."""
    x, edge = node.input(0), float(attr(node, "lambd"))
    return select(b, b.Or(b.Less(x, -edge), b.Greater(x, edge)), v)


@shrink.kinks
def _(b: Builder, node: Node) -> Value:
    """At the edges of what is shrunk to 0."""
    edge = float(attr(node, "lambd"))
    return at(b, node.input(0), -edge, edge)


# ---- exponential --------------------------------------------------------------------------------------------------------


@op("Sigmoid", since=6, traits=UNARY, in_place=True)
def sigmoid(x: Array, *, out: Array | None = None) -> Array:
    return _logistic(x, out)


def _logistic(x: Array, out: Array | None) -> Array:
    """1 / (1 + exp(-x)); where exp overflows the quotient is exactly 0."""
    result = np.negative(x, out=_buffer(x, out))
    np.exp(result, out=result)
    np.add(result, 1, out=result)
    return np.divide(1, result, out=result)


@sigmoid.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = y (1 - y)."""
    y = node.output()
    return (b.Mul(y, b.Sub(b.scalar(1, y.type.dtype), y)),)


@op("Logistic", domain=FLOWGRAD, traits=UNARY, in_place=True)
def logistic(x: Array, *, out: Array | None = None) -> Array:
    """1 / (1 + exp(-x)) that was spelled so; runtimes give that its digits, where their Sigmoid is 0 below about -18."""
    return _logistic(x, out)


@logistic.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = y / (1 + exp(x))."""
    return (b.Mul(node.output(), b.Logistic(b.Neg(node.input(0)))),)


@logistic.expansion
def _(b: Builder, node: Node) -> Any:
    """y = 1 / (1 + exp(-x)); read again, it is repaired again."""
    return b.Reciprocal(b.Add(b.Exp(b.Neg(node.input(0))), 1.0))


@op("Tanh", since=6, outputs=("output",), traits=UNARY, ufunc=np.tanh, in_place=True)
def tanh(x: Array, *, out: Array | None = None) -> Array:
    return np.tanh(x, out=out)


@tanh.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = 1 - y^2."""
    y = node.output()
    return (b.Sub(b.scalar(1, y.type.dtype), b.Mul(y, y)),)


@op("Elu", since=6, traits=UNARY)
def elu(x: Array, *, alpha: float = 1.0, out: Array | None = None, work: Work = None) -> Array:
    return _exponential_linear(x, alpha, 1.0, _buffer(x, out), work)


@elu.work
def _(node: Node) -> list[Type]:
    return [] if 0 <= attr(node, "alpha") <= 1 else _one_like_first(node)


def _exponential_linear(x: Array, alpha: float, width: float, out: Array, work: Work) -> Array:
    """Write max(x, 0) + alpha (exp(min(x, 0) / width) - 1) to ``out``."""
    np.minimum(x, 0, out=out)
    if width != 1:
        np.divide(out, width, out=out)
    np.expm1(out, out=out)
    if alpha != 1:
        np.multiply(out, alpha, out=out)
    if 0 <= alpha <= width:  # then the curve lies above x on the left
        return np.maximum(out, x, out=out)
    positive = _scratch(x, work)
    np.maximum(x, 0, out=positive)
    return np.add(out, positive, out=out)


@slope(elu)
def _(b: DerivativeBuilder, node: Node, v: Value) -> Any:
    """v where x > 0, else alpha exp(x) v; exp(x) is lost in y + alpha where it is small."""
    negative = b.Mul(b.Mul(v, _fading(b, node.input(0))), float(attr(node, "alpha")))
    return b.Where(b.Greater(node.input(0), 0.0), v, negative)


def _fading(b: Builder, x: Value, width: float = 1.0) -> Value:
    """Return exp(min(x, 0) / width)."""
    below = b.Clip(x, None, 0.0)
    return b.Exp(below if width == 1 else b.Div(below, width))


@elu.kinks
def _(b: Builder, node: Node) -> Value:
    """At 0, unless alpha is 1."""
    x = node.input(0)
    return at(b, x, 0.0) if attr(node, "alpha") != 1 else b.filled(False, x, BOOL)


@op("Celu", since=12, traits=UNARY)
def celu(x: Array, *, alpha: float = 1.0, out: Array | None = None, work: Work = None) -> Array:
    return _exponential_linear(x, alpha, alpha, _buffer(x, out), work)


@celu.work
def _(node: Node) -> list[Type]:
    return [] if attr(node, "alpha") >= 0 else _one_like_first(node)


@slope(celu)
def _(b: DerivativeBuilder, node: Node, v: Value) -> Any:
    """v where x > 0, else exp(x / alpha) v."""
    negative = b.Mul(v, _fading(b, node.input(0), float(attr(node, "alpha"))))
    return b.Where(b.Greater(node.input(0), 0.0), v, negative)


@op("Selu", since=6, traits=UNARY)
def selu(x: Array, *, alpha: float = _single(1.67326319217681884765625), gamma: float = _single(1.05070102214813232),
         out: Array | None = None, work: Work = None) -> Array:
    result = _exponential_linear(x, alpha, 1.0, _buffer(x, out), work)
    return np.multiply(result, gamma, out=result)


selu.work(_one_like_first)


@slope(selu)
def _(b: DerivativeBuilder, node: Node, v: Value) -> Any:
    """gamma v where x > 0, else gamma alpha exp(x) v."""
    gamma, alpha = float(attr(node, "gamma")), float(attr(node, "alpha"))
    negative = b.Mul(b.Mul(v, _fading(b, node.input(0))), gamma * alpha)
    return b.Where(b.Greater(node.input(0), 0.0), b.Mul(v, gamma), negative)


@selu.kinks
def _(b: Builder, node: Node) -> Value:
    """At 0."""
    return at(b, node.input(0), 0.0)


@op("Softplus", since=1, traits=UNARY)
def softplus(x: Array, *, out: Array | None = None, work: Work = None) -> Array:
    return _softplus(x, out, work)


softplus.work(_one_like_first)


def _softplus(x: Array, out: Array | None, work: Work) -> Array:
    """Return max(x, 0) + log(1 + exp(-|x|)), which overflows nowhere."""
    result, positive = _buffer(x, out), _scratch(x, work)
    np.absolute(x, out=result)
    np.negative(result, out=result)
    np.exp(result, out=result)
    np.log1p(result, out=result)
    np.maximum(x, 0, out=positive)
    return np.add(result, positive, out=result)


@softplus.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = sigmoid(x)."""
    return (b.Sigmoid(node.input(0)),)


@op("Mish", since=18, traits=UNARY)
def mish(x: Array, *, out: Array | None = None, work: Work = None) -> Array:
    result = _softplus(x, out, work)
    np.tanh(result, out=result)
    return np.multiply(result, x, out=result)


mish.work(_one_like_first)


@mish.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """With t = tanh(softplus(x)): dy/dx = t + x (1 - t^2) sigmoid(x), of which only t is left where x is large."""
    x = b.Clip(node.input(0), None, 100.0)
    t = b.Tanh(b.Softplus(x))
    rest = b.Sub(b.scalar(1, x.type.dtype), b.Mul(t, t))
    return (b.Add(t, b.Mul(b.Mul(x, b.Sigmoid(x)), rest)),)


@mish.expansion
def _(b: Builder, node: Node) -> Any:
    """y = x tanh(softplus(x))."""
    x = node.input(0)
    return b.Mul(x, b.Tanh(b.Softplus(x)))


@op("Swish", since=24, traits=UNARY)
def swish(x: Array, *, alpha: float = 1.0, out: Array | None = None) -> Array:
    return _swish(x, alpha, _buffer(x, out))


def _swish(x: Array, alpha: float, out: Array) -> Array:
    np.multiply(x, -alpha, out=out)
    np.exp(out, out=out)
    np.add(out, 1, out=out)
    return np.divide(x, out, out=out)


@swish.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """With z = alpha x and s = sigmoid(z): dy/dx = s (1 + z (1 - s))."""
    return (_swish_slope(b, node),)


def _swish_slope(b: Builder, node: Node) -> Value:
    x, alpha = node.input(0), float(attr(node, "alpha"))
    z = b.Clip(x if alpha == 1 else b.Mul(x, alpha), -1000.0, 1000.0)  # where s is 0 or 1 and z (1 - s) is finite
    s = b.Sigmoid(z)
    rest = b.Sub(b.scalar(1, x.type.dtype), s)
    return b.Mul(s, b.Add(b.Mul(z, rest), 1.0))


@swish.expansion
def _(b: Builder, node: Node) -> Any:
    """y = x sigmoid(alpha x)."""
    x = node.input(0)
    return b.Mul(x, _gate(b, x, float(attr(node, "alpha"))))


def _gate(b: Builder, x: Value, alpha: float) -> Value:
    return b.Sigmoid(x if alpha == 1 else b.Mul(x, alpha))


@op("SwiGLU", since=28, traits=UNARY)
def swiglu(a: Array, b: Array, *, alpha: float = 1.0, out: Array | None = None) -> Array:
    result = _swish(a, alpha, _buffer(a, out))
    return np.multiply(result, b, out=result)


@swiglu.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """With g(a) = a sigmoid(alpha a): dy/da = g'(a) b; dy/db = g(a)."""
    gated, factor = node.input(0), node.input(1)
    return b.Mul(_swish_slope(b, node), factor), b.Mul(gated, _gate(b, gated, float(attr(node, "alpha"))))


@swiglu.expands_on_export
def _(node: Node) -> bool:
    """onnxruntime has no kernel for it, nor for the Swish that it finds in its function body."""
    return True


@swiglu.expansion
def _(b: Builder, node: Node) -> Any:
    """y = a sigmoid(alpha a) b."""
    gated, factor = node.input(0), node.input(1)
    return b.Mul(b.Mul(gated, _gate(b, gated, float(attr(node, "alpha")))), factor)


# ---- Gelu ---------------------------------------------------------------------------------------------------------------

SLOPE, CUBIC = math.sqrt(2 / math.pi), 0.044715


@op("Gelu", since=20, traits=UNARY)
def gelu(x: Array, *, approximate: str = "none", out: Array | None = None, work: Work = None) -> Array:
    result = _buffer(x, out)
    if approximate == "tanh":
        np.multiply(x, x, out=result)
        np.multiply(result, SLOPE * CUBIC, out=result)
        np.add(result, SLOPE, out=result)
        np.multiply(result, x, out=result)
        np.tanh(result, out=result)
    else:
        np.multiply(x, math.sqrt(0.5), out=result)
        erf_into(result, result, work[0] if work else None)
    np.add(result, 1, out=result)
    np.multiply(result, 0.5, out=result)
    return np.multiply(result, x, out=result)


@gelu.work
def _(node: Node) -> list[Type]:
    return [Type(FLOAT64, (ROWS, BLOCK))]


@gelu.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """With y = x F(x): dy/dx = F(x) + x F'(x), where F is 0 or 1 long before its argument overflows."""
    is_tanh = attr(node, "approximate") == "tanh"
    x = b.Clip(node.input(0), *((-20.0, 20.0) if is_tanh else (-40.0, 40.0)))
    if is_tanh:
        t = b.Tanh(_tanh_argument(b, x))
        inner = b.Add(b.Mul(b.Mul(x, x), 3 * SLOPE * CUBIC), SLOPE)
        density = b.Mul(b.Mul(b.Sub(b.scalar(1, x.type.dtype), b.Mul(t, t)), inner), 0.5)
    else:
        t = b.Erf(b.Mul(x, math.sqrt(0.5)))
        density = b.Mul(b.Exp(b.Mul(b.Mul(x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return (b.Add(b.Mul(b.Add(t, 1.0), 0.5), b.Mul(x, density)),)


def _tanh_argument(b: Builder, x: Value) -> Value:
    return b.Mul(x, b.Add(b.Mul(b.Mul(x, x), SLOPE * CUBIC), SLOPE))


@gelu.expansion
def _(b: Builder, node: Node) -> Any:
    """y = x / 2 (1 + erf(x / sqrt 2)), or with tanh in place of erf."""
    x = node.input(0)
    is_tanh = attr(node, "approximate") == "tanh"
    t = b.Tanh(_tanh_argument(b, x)) if is_tanh else b.Erf(b.Mul(x, math.sqrt(0.5)))
    return b.Mul(b.Mul(x, 0.5), b.Add(t, 1.0))


@op("Softsign", since=1, outputs=("output",), traits=(Trait.ELEMENTWISE,))
def softsign(x: Array, *, out: Array | None = None) -> Array:
    return np.asarray(np.divide(x, 1 + np.abs(x), out=out))


@softsign.partials
def _(b: DerivativeBuilder, node: Node) -> Any:
    """dy/dx = 1 / (1 + |x|)^2."""
    inverse = b.Reciprocal(b.Add(b.Abs(node.input(0)), 1.0))
    return (b.Mul(inverse, inverse),)


swiglu.batch(together)


@prelu.batch
def _(b: BatchBuilder, node: Node, x: Value, slope: Value) -> Any:
    """The slope broadcasts to x, not x to the slope."""
    return pointwise(b, node, b.lifted(x), slope)
