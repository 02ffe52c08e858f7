"""Random operators. A ``seed`` makes a node draw the same numbers in every run; without one the run's generator draws."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, merged_again, single
from flowgrad.ir.derivative_builder import DerivativeBuilder
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.ops.elementwise.arithmetic import select
from flowgrad.ir.ops.operands import joined, unknown_ranks
from flowgrad.ir.ops.registry import NO_GRADIENT, Trait, attr, op, refuse
from flowgrad.ir.types import BOOL, FLOAT64, Type, dtype_of

RANDOM = (Trait.RANDOM, Trait.ZERO)


def _generator(seed: float | int | None, rng: np.random.Generator) -> np.random.Generator:
    """Return the generator that a node draws from: its own if it has a seed (any number), else the run's."""
    if seed is None:
        return rng
    return np.random.default_rng(int.from_bytes(struct.pack("<d", float(seed)), "little"))


# ---- Dropout ------------------------------------------------------------------------------------------------------------


@op("Dropout", new_dtypes=("ratio",), since=12, outputs=("output", "mask"), required_outputs=1, traits=(Trait.RANDOM,),
    settings=("ratio", "training_mode"))
def dropout(
    data: Array, ratio: Array | None = None, training_mode: Array | None = None, *, seed: int | None = None,
    rng: np.random.Generator
) -> tuple[Array, Array]:
    rate = 0.5 if ratio is None else float(ratio.reshape(()))
    if training_mode is None or not training_mode.reshape(()) or rate == 0:
        return data, np.ones(data.shape, bool)
    # With a seed, the numbers that the standard's reference draws: its stored results hold here as well.
    draws = rng.random(data.shape) if seed is None else np.random.RandomState(seed % 2**32).random_sample(data.shape)
    mask = np.asarray(draws >= rate)
    kept = data * data.dtype.type(1 / (1 - rate)) if rate < 1 else data
    return np.where(mask, kept, data.dtype.type(0)), mask


@dropout.types
def _(node: Node) -> list[Type]:
    data = node.input(0).type
    return [data, data.with_dtype(BOOL)]


@dropout.draws
def _(node: Node) -> bool:
    return not _is_inference(node)


@dropout.adjoint
def _(b: DerivativeBuilder, node: Node, output_bar: Value, mask_bar: None) -> Any:
    """data_bar = output_bar / (1 - ratio) where the mask of this very run kept the element, else 0.

    At inference the ratio does nothing.
    """
    ratio = NO_GRADIENT if _is_inference(node) else refuse(_OF_A_DISTRIBUTION)
    return [_dropped(b, node, output_bar), ratio, NO_GRADIENT][: len(node.inputs)]


@dropout.tangent
def _(b: DerivativeBuilder, node: Node, data_dot: Value | None, ratio_dot: Value | None = None, mode_dot: None = None) -> Any:
    """output_dot = data_dot / (1 - ratio) where the mask kept the element, else 0."""
    if ratio_dot is not None and not _is_inference(node):
        return refuse(_OF_A_DISTRIBUTION)
    return [None if data_dot is None else _dropped(b, node, data_dot), None]


_OF_A_DISTRIBUTION = "the derivative with respect to a dropout ratio is that of a distribution, not of a sample"


def _is_inference(node: Node) -> bool:
    """Return whether it is known that nothing is dropped."""
    training = node.optional(2)
    return training is None or (training.constant is not None and not training.constant.reshape(()))


def _dropped(b: DerivativeBuilder, node: Node, v: Value) -> Value:
    ratio, training = node.optional(1), node.optional(2)
    if training is None or _is_inference(node):
        return v
    dtype = v.type.dtype
    rate = b.scalar(0.5, dtype) if ratio is None else b.cast_like(ratio, v)
    active = b.Where(training, rate, b.scalar(0, dtype))  # at inference nothing is dropped nor scaled
    kept = select(b, b.residual(node, "mask"), v)
    return b.Div(kept, b.Sub(b.scalar(1, dtype), active))


# ---- draws --------------------------------------------------------------------------------------------------------------


def _draw_type(node: Node) -> Type:
    return Type(dtype_of(attr(node, "dtype")), tuple(attr(node, "shape")))


def _draw_type_like(node: Node) -> Type:
    dtype, like = attr(node, "dtype"), node.input(0).type
    return like if dtype is None else like.with_dtype(dtype_of(dtype))


@op("RandomNormal", outputs=("output",), traits=RANDOM, dtype_attributes=("dtype",))
def random_normal(*, shape: Sequence[int], dtype: int = 1, mean: float = 0.0, scale: float = 1.0,
                  seed: float | None = None, rng: np.random.Generator) -> Array:
    return np.asarray(_generator(seed, rng).normal(mean, scale, tuple(shape)), dtype_of(dtype).numpy)


@op("RandomUniform", outputs=("output",), traits=RANDOM, dtype_attributes=("dtype",))
def random_uniform(*, shape: Sequence[int], dtype: int = 1, low: float = 0.0, high: float = 1.0,
                   seed: float | None = None, rng: np.random.Generator) -> Array:
    return np.asarray(_generator(seed, rng).uniform(low, high, tuple(shape)), dtype_of(dtype).numpy)


@op("RandomNormalLike", outputs=("output",), traits=RANDOM, dtype_attributes=("dtype",))
def random_normal_like(x: Array, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0,
                       seed: float | None = None, rng: np.random.Generator, to_dtype: Any = None) -> Array:
    return np.asarray(_generator(seed, rng).normal(mean, scale, x.shape), to_dtype)


@op("RandomUniformLike", outputs=("output",), traits=RANDOM, dtype_attributes=("dtype",))
def random_uniform_like(x: Array, *, dtype: int | None = None, low: float = 0.0, high: float = 1.0,
                        seed: float | None = None, rng: np.random.Generator, to_dtype: Any = None) -> Array:
    return np.asarray(_generator(seed, rng).uniform(low, high, x.shape), to_dtype)


@op("Bernoulli", since=15, outputs=("output",), traits=RANDOM, dtype_attributes=("dtype",))
def bernoulli(x: Array, *, dtype: int | None = None, seed: float | None = None, rng: np.random.Generator,
              to_dtype: Any = None) -> Array:
    return np.asarray(_generator(seed, rng).random(x.shape) < x, to_dtype)


@op("Multinomial", since=7, outputs=("output",), traits=RANDOM, dtype_attributes=("dtype",))
def multinomial(x: Array, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None,
                rng: np.random.Generator) -> Array:
    """Draw class indices; each row of ``x`` holds unnormalised log-probabilities."""
    rows, classes = x.shape
    drawn = _generator(seed, rng).random((rows, sample_size))
    if not rows or not classes:
        return np.zeros((rows, sample_size), dtype_of(dtype).numpy)
    weights = np.exp(x - x.max(axis=1, keepdims=True), dtype=np.float64)
    upper = np.cumsum(weights, axis=1)
    offset = np.arange(rows)[:, None]  # row r occupies [r, r + 1) of one long sorted table
    table = (upper / upper[:, -1:] + offset).ravel()
    found = np.searchsorted(table, (drawn + offset).ravel(), side="right").reshape(drawn.shape) - offset * classes
    return np.asarray(np.clip(found, 0, classes - 1), dtype_of(dtype).numpy)


for _definition in (random_normal, random_uniform):
    _definition.types(_draw_type)
for _definition in (random_normal_like, random_uniform_like, bernoulli):
    _definition.types(_draw_type_like)


@multinomial.types
def _(node: Node) -> Type:
    shape = node.input(0).type.shape
    return Type(dtype_of(attr(node, "dtype")), None if shape is None else (shape[0], int(attr(node, "sample_size"))))


# ---- many examples ----------------------------------------------------------------------------------------------------------


@dropout.batch
def _(b: BatchBuilder, node: Node, data: Value, ratio: Value | None = None, training: Value | None = None) -> Any:
    """A mask for each example, or one for all of them."""
    if any(b.holds(x) for x in (ratio, training)) or data.type.rank is None:
        return refuse("the examples must share its ratio and its mode, and the rank of its data must be known")
    if b.randomness != "same":
        return again(b, node, [b.lifted(data), ratio, training])
    names = [b.fresh(f"{node.label}_{name}") for name in ("factors", "mask_of_all")]
    ones = b.Expand(b.scalar(1, data.type.dtype), b.example_shape(data))
    factors, mask = b.add_several("Dropout", [ones, ratio, training], dict(node.attributes), outputs=names)
    output = b.Where(mask, b.Mul(data, factors), b.scalar(0, data.type.dtype))
    return [output, b.same(mask)]


def _drawn(b: BatchBuilder, node: Node, *xs: Value) -> Any:
    """Numbers for each example, or one set for all of them."""
    if xs and xs[0].type.rank is None:
        return refuse(unknown_ranks(node))
    if b.randomness == "same":
        return b.same(single(b, node, [b.one(x) if b.holds(x) else x for x in xs]))
    y = node.output()
    like = b.lifted(xs[0]) if xs else b.Expand(b.scalar(0, y.type.dtype), joined(b, [b.count, b.ints(attr(node, "shape"))]))
    kept = {name: value for name, value in node.attributes.items() if name != "shape"}
    return b.add(node.op if xs else f"{node.op}Like", [like], {**kept, "dtype": y.type.dtype.onnx})


for _definition in (random_normal, random_uniform, random_normal_like, random_uniform_like):
    _definition.batch(_drawn)


@bernoulli.batch
def _(b: BatchBuilder, node: Node, x: Value) -> Any:
    """A draw for each element of each example, or one for each element of all of them."""
    if x.type.rank is None:
        return refuse(unknown_ranks(node))
    if b.randomness != "same":
        return again(b, node, [b.lifted(x)])
    drawn = b.RandomUniformLike(b.one(x), dtype=FLOAT64.onnx, seed=attr(node, "seed"))
    return b.cast(b.Less(drawn, b.cast(x, FLOAT64)), node.output().type.dtype)


@multinomial.batch
def _(b: BatchBuilder, node: Node, x: Value) -> Any:
    """More rows. What one table of numbers would draw from all examples is not a Multinomial."""
    if b.randomness == "same":
        return refuse("it draws from one table, which examples cannot share")
    if x.type.rank is None:
        return refuse(unknown_ranks(node))
    return merged_again(b, node, [x], {0: 0}, [0])
