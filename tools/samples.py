"""Seeded inputs for a graph that is run without any."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from flowgrad.ir.errors import InputError
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.limits import Limits
from flowgrad.ir.types import Dim


def sample_inputs(graph: Graph, seed: int, given: Mapping[str, Array]) -> tuple[dict[str, Array], list[str]]:
    """Return an array for each input, and the named dims that were assumed to be 1; nothing if all inputs are ``given``.

    Some and not others is an InputError: a forgotten input is not made up. Floats are standard normal, integers 0 or 1, the
    same for the same seed. A named dim has one extent everywhere.
    """
    missing = [v.name for v in graph.inputs if v.name not in given]
    if given and missing:
        raise InputError(f"no value given for input {', '.join(map(repr, missing[:8]))}: give all inputs, or none to have them "
                         "made up", code="missing")
    env = _bound_dims(graph, given)
    assumed: dict[str, None] = {}
    rng = np.random.default_rng(seed)
    made = {}
    for value in graph.inputs:
        if value.name not in given:
            made[value.name] = _sample(value, _extents(value, env, assumed), rng, graph.limits)
    return made, list(assumed)


def _bound_dims(graph: Graph, given: Mapping[str, Array]) -> dict[str, int]:
    env: dict[str, int] = {}
    for value in graph.inputs:
        extents = given[value.name].shape if value.name in given else None
        if extents is None or value.type.shape is None:
            continue
        if len(extents) != len(value.type.shape):
            raise InputError(f"input {value.name!r} is {value.type!r}, got the shape {list(extents)}", code="shape")
        for dim, extent in zip(value.type.shape, extents, strict=True):
            if isinstance(dim, Dim) and len(dim.names()) == 1 and dim == Dim.named(next(iter(dim.names()))):
                env[next(iter(dim.names()))] = extent
    return env


def _extents(value: Value, env: Mapping[str, int], assumed: dict[str, None]) -> tuple[int, ...]:
    if value.type.shape is None:
        raise InputError(f"the rank of input {value.name!r} is not known: give --input-shapes {value.name}:...", code="shape")
    extents = []
    for dim in value.type.shape:
        if isinstance(dim, Dim):
            assumed.update(dict.fromkeys(sorted(dim.names() - set(env))))
            extents.append(dim.evaluate({**dict.fromkeys(dim.names(), 1), **env}))
        else:
            extents.append(dim)
    return tuple(extents)


def _sample(value: Value, shape: tuple[int, ...], rng: np.random.Generator, limits: Limits) -> Array:
    dtype = value.type.dtype
    limits.check("tensor_bytes", math.prod(max(n, 1) for n in shape) * 8, f"the input {value.name!r} that is made up")
    if dtype.is_float:
        return np.asarray(rng.standard_normal(shape)).astype(dtype.numpy)
    if dtype.element is not None:
        raise InputError(f"input {value.name!r} is {dtype.name}: run this model from Python, where a list of arrays (or None, "
                         "for an optional value) can be given", code="dtype")
    if dtype.kind == "string":
        raise InputError(f"input {value.name!r} holds strings: give it with --inputs", code="dtype")
    return np.asarray(rng.integers(0, 2, shape)).astype(dtype.numpy)
