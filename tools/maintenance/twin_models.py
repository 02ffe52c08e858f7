"""Small models written once and made twice: as graphs of ONNX operators, and as functions of JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import INITIALIZER, Array, Graph, Value
from flowgrad.ir.types import FLOAT64, DType, Type
from flowgrad.model import Model

EPSILON = 1e-5

UNARY = {"tanh": "Tanh", "sin": "Sin", "exp": "Exp", "sqrt": "Sqrt", "sigmoid": "Sigmoid", "relu": "Relu", "gelu": "Gelu",
         "silu": "Swish", "softplus": "Softplus", "reciprocal": "Reciprocal", "softmax": "Softmax", "log_softmax": "LogSoftmax"}
"""Functions of one array: the names of JAX, and operators. Softmax is along the last axis in both."""


@dataclass(frozen=True)
class Term:
    """A value of a graph, with the signs of arithmetic."""

    b: Builder
    value: Value

    def __matmul__(self, other: Term) -> Term:
        return self._with("MatMul", other)

    def __add__(self, other: Term) -> Term:
        return self._with("Add", other)

    def __sub__(self, other: Term) -> Term:
        return self._with("Sub", other)

    def __mul__(self, other: Term | float) -> Term:
        return self._with("Mul", other)

    def _with(self, op: str, other: Term | float) -> Term:
        return Term(self.b, self.b.add(op, [self.value, other.value if isinstance(other, Term) else other]))


class Onnx:
    """The functions that models are written in, as operators that are added to a graph."""

    def __init__(self, b: Builder) -> None:
        self.b = b

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda x: self._add(UNARY[name], x)

    def _add(self, op: str, *inputs: Any, **attributes: Any) -> Term:
        return Term(self.b, self.b.add(op, [x.value if isinstance(x, Term) else x for x in inputs], attributes))

    def weight(self, array: Array) -> Term:
        return Term(self.b, self.b.graph.add_constant(array, self.b.graph.unique_name("w"), INITIALIZER))

    def total(self, x: Term) -> Term:
        return self._add("ReduceSum", x, keepdims=0)

    def last_sum(self, x: Term) -> Term:
        return self._add("ReduceSum", x, [-1], keepdims=0)

    def transpose(self, x: Term, order: Sequence[int]) -> Term:
        return self._add("Transpose", x, perm=list(order))

    def reshape(self, x: Term, shape: Sequence[int]) -> Term:
        return self._add("Reshape", x, list(shape))

    def conv(self, x: Term, w: Term, groups: int = 1) -> Term:
        return self._add("Conv", x, w, pads=[1] * 4, group=groups)

    def max_pool(self, x: Term) -> Term:
        return self._add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    def layer_norm(self, x: Term, scale: Term, bias: Term) -> Term:
        return self._add("LayerNormalization", x, scale, bias, epsilon=EPSILON)

    def rms_norm(self, x: Term, scale: Term) -> Term:
        return self._add("RMSNormalization", x, scale, epsilon=EPSILON)

    def batch_norm(self, x: Term, *statistics: Term) -> Term:
        return self._add("BatchNormalization", x, *statistics, epsilon=EPSILON)

    def batch_norm_training(self, x: Term, *statistics: Term) -> Term:
        values = [x.value, *(s.value for s in statistics)]
        return Term(self.b, self.b.add_several("BatchNormalization", values, {"epsilon": EPSILON, "training_mode": 1}, outputs=3)[0])

    def gather(self, x: Term, places: Array) -> Term:
        return self._add("Gather", x, np.asarray(places))

    def gathered_sums(self, x: Term, places: Array, updates: Term) -> Term:
        return self._add("ScatterND", x * 0.0, places[:, None], updates, reduction="add")


class Jax:
    """The same functions in jax.numpy."""

    def __init__(self) -> None:
        import jax

        self.jax, self.np = jax, jax.numpy

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name == "gelu":
            return lambda x: self.jax.nn.gelu(x, approximate=False)
        if name == "reciprocal":
            return lambda x: 1 / x
        return getattr(self.np, name, None) or getattr(self.jax.nn, name)  # type: ignore[no-any-return]

    def weight(self, array: Array) -> Any:
        return self.np.asarray(array)

    def total(self, x: Any) -> Any:
        return x.sum()

    def last_sum(self, x: Any) -> Any:
        return x.sum(-1)

    def conv(self, x: Any, w: Any, groups: int = 1) -> Any:
        return self.jax.lax.conv_general_dilated(x, w, (1, 1), [(1, 1)] * 2, feature_group_count=groups,
                                                 dimension_numbers=("NCHW", "OIHW", "NCHW"))

    def max_pool(self, x: Any) -> Any:
        return self.jax.lax.reduce_window(x, -self.np.inf, self.jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    def layer_norm(self, x: Any, scale: Any, bias: Any) -> Any:
        return self._standardised(x, -1) * scale + bias

    def rms_norm(self, x: Any, scale: Any) -> Any:
        return x * self.jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPSILON) * scale

    def batch_norm(self, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
        turned = (a[:, None, None] for a in (mean, self.jax.lax.rsqrt(variance + EPSILON) * scale, bias))
        mean, factor, bias = turned
        return (x - mean) * factor + bias

    def batch_norm_training(self, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
        return self._standardised(x, (0, 2, 3)) * scale[:, None, None] + bias[:, None, None]

    def _standardised(self, x: Any, axes: Any) -> Any:
        centred = x - x.mean(axes, keepdims=True)
        return centred * self.jax.lax.rsqrt((centred * centred).mean(axes, keepdims=True) + EPSILON)

    def gather(self, x: Any, places: Array) -> Any:
        return x[places]

    def gathered_sums(self, x: Any, places: Array, updates: Any) -> Any:
        return self.np.zeros_like(x).at[places].add(updates)


# ---- the models -----------------------------------------------------------------------------------------------------------


def drawn(f: Any, *shape: int) -> Any:
    """Return a weight, the same at every call with this shape."""
    return f.weight(np.random.default_rng(sum(shape)).standard_normal(shape) / np.sqrt(shape[0]))


def dense(f: Any, x: Any, inputs: int, outputs: int) -> Any:
    return x @ drawn(f, inputs, outputs) + drawn(f, outputs)


def perceptron(f: Any, x: Any) -> Any:
    h = f.tanh(dense(f, f.tanh(dense(f, x, 8, 16)), 16, 16))
    return f.total(f.log_softmax(dense(f, h, 16, 4)) * drawn(f, 3, 4))


def lenet(f: Any, x: Any) -> Any:
    h = f.max_pool(f.relu(f.conv(x, drawn(f, 4, 1, 3, 3))))
    h = f.max_pool(f.relu(f.conv(h, drawn(f, 8, 4, 3, 3))))
    return f.softmax(dense(f, f.relu(dense(f, f.reshape(h, (2, 32)), 32, 16)), 16, 4))


def attention(f: Any, x: Any) -> Any:
    """Two heads over 5 rows of 8."""
    q, k, v = (f.transpose(f.reshape(x @ drawn(f, 8, 8), (5, 2, 4)), (1, 0, 2)) for _ in range(3))
    shares = f.softmax(q @ f.transpose(k, (0, 2, 1)) * 0.5)
    return f.reshape(f.transpose(shares @ v, (1, 0, 2)), (5, 8)) @ drawn(f, 8, 8)


def transformer(f: Any, x: Any) -> Any:
    x = x + attention(f, f.layer_norm(x, drawn(f, 8), drawn(f, 8)))
    h = f.gelu(dense(f, f.layer_norm(x, drawn(f, 8), drawn(f, 8)), 8, 16))
    return x + dense(f, h, 16, 8)


def llama(f: Any, x: Any) -> Any:
    x = x + attention(f, f.rms_norm(x, drawn(f, 8)))
    h = f.rms_norm(x, drawn(f, 8))
    return x + (f.silu(h @ drawn(f, 8, 16)) * (h @ drawn(f, 8, 16))) @ drawn(f, 16, 8)


def _normed(f: Any, x: Any, training: bool) -> Any:
    norm = f.batch_norm_training if training else f.batch_norm
    return norm(x, drawn(f, 4), drawn(f, 4), drawn(f, 4), f.weight(np.linspace(0.5, 1.5, 4)))


def residual(f: Any, x: Any, training: bool = False) -> Any:
    h = f.relu(_normed(f, f.conv(x, drawn(f, 4, 4, 3, 3)), training))
    return f.relu(x + _normed(f, f.conv(h, drawn(f, 4, 4, 3, 3)), training))


def residual_training(f: Any, x: Any) -> Any:
    return residual(f, x, training=True)


def convnext(f: Any, x: Any) -> Any:
    h = f.transpose(f.conv(x, drawn(f, 4, 1, 3, 3), groups=4), (0, 2, 3, 1))
    h = f.gelu(dense(f, f.layer_norm(h, drawn(f, 4), drawn(f, 4)), 4, 8)) @ drawn(f, 8, 4)
    return x + f.transpose(h, (0, 3, 1, 2))


def siren(f: Any, x: Any) -> Any:
    for inputs in (2, 16, 16):
        x = f.sin(dense(f, x, inputs, 16) * 30.0)
    return x @ drawn(f, 16, 1)


def lennard_jones(f: Any, x: Any) -> Any:
    i, j = np.triu_indices(5, 1)
    apart = f.gather(x, i) - f.gather(x, j)
    inverse = f.reciprocal(f.last_sum(apart * apart))
    sixth = inverse * inverse * inverse
    return f.total(sixth * sixth - sixth)


def gated(f: Any, x: Any) -> Any:
    """Three steps of a gated recurrent unit."""
    h = drawn(f, 3, 6)
    for t in range(3):
        now = f.gather(x, np.array(t))
        update, reset = (f.sigmoid(dense(f, now, 5, 6) + h @ drawn(f, 6, 6)) for _ in range(2))
        new = f.tanh(dense(f, now, 5, 6) + (reset * h) @ drawn(f, 6, 6))
        h = new + update * (h - new)
    return h


def filters(f: Any, x: Any) -> Any:
    """One layer of continuous filters over six pairs of four atoms."""
    i, j = np.array([0, 1, 2, 3, 1, 2]), np.array([1, 0, 3, 2, 2, 1])
    apart = f.gather(x, i) - f.gather(x, j)
    away = f.reshape(f.sqrt(f.last_sum(apart * apart)), (6, 1)) - f.weight(np.linspace(0, 2, 4)[None])
    made = f.softplus(f.exp(away * away * -4.0) @ drawn(f, 4, 3)) @ drawn(f, 3, 3)
    h = x + f.gathered_sums(x, i, f.gather(x, j) * made)
    return f.total(f.tanh(h @ drawn(f, 3, 8)) @ drawn(f, 8, 1))


@dataclass(frozen=True)
class Twin:
    """A model as a function of one input, written in ``Onnx`` or ``Jax``, and the shape of the input."""

    function: Callable[[Any, Any], Any]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.function.__name__

    def graph(self, dtype: DType = FLOAT64) -> Model:
        """Return the model: x to y."""
        graph = Graph(self.name)
        b = Builder(graph)
        y = self.function(Onnx(b), Term(b, graph.add_input("x", Type(dtype, self.shape))))
        graph.add_output(y.value, "y")
        return Model(graph)


IMAGES = (2, 4, 6, 6)

TWINS = (
    Twin(perceptron, (3, 8)), Twin(lenet, (2, 1, 8, 8)), Twin(transformer, (5, 8)), Twin(llama, (5, 8)), Twin(residual, IMAGES),
    Twin(residual_training, IMAGES), Twin(convnext, IMAGES), Twin(siren, (7, 2)), Twin(lennard_jones, (5, 3)),
    Twin(gated, (3, 3, 5)), Twin(filters, (4, 3)),
)
