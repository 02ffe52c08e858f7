"""``python -m flowgrad.tools.maintenance.beside_jax``: sizes of tangent graphs, and times of matrices, beside JAX.

``--sizes`` counts the nodes of the optimised graphs of eleven small models and of their Jacobian-vector products, and the
equations of JAX's jaxprs of the same, nested calls counted by what is in them; the tangents themselves are compared. Without it,
Jacobians and Hessians of multilayer perceptrons are timed beside ``jacrev`` and ``hessian`` under ``jit``, each call in turn, on one
thread: medians of seconds of the processor, and the least of seconds on the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowgrad.ir.types import FLOAT32, FLOAT64, DType
from flowgrad.tools.maintenance.twin_models import TWINS, Jax, Twin
from flowgrad.transforms.batching import vmap
from flowgrad.transforms.derivatives import jvp
from flowgrad.transforms.hessians import hessian
from flowgrad.transforms.jacobians import jacobian

LARGER = 1.3
"""Tangent graphs of more than so many times the nodes of JAX's are marked."""

ROUNDS = 41

TRANSPARENT = ("pjit", "jit", "closed_call", "custom_jvp_call", "custom_vjp_call")
"""Equations that are calls of others, which count instead."""


# ---- sizes ----------------------------------------------------------------------------------------------------------------


def equations(jaxpr: Any) -> Iterator[str]:
    """Yield the primitives of a jaxpr, those inside of calls included."""
    for equation in jaxpr.eqns:
        inner = [getattr(p, "jaxpr", p) for p in equation.params.values() if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
        if inner and equation.primitive.name in TRANSPARENT:
            for part in inner:
                yield from equations(part)
        else:
            yield equation.primitive.name


def compare_sizes(twin: Twin) -> str:
    """Return the line of one model. Raises AssertionError if the tangents differ."""
    import jax

    rng = np.random.default_rng(1)
    x, v = 0.3 * rng.standard_normal(twin.shape), rng.standard_normal(twin.shape)
    model = twin.graph()
    pushed = jvp(model)

    def function(x: Any) -> Any:
        return twin.function(Jax(), x)

    def tangent(x: Any, v: Any) -> Any:
        return jax.jvp(function, (x,), (v,))

    got, expected = pushed(x=x, x_tangent=v)["y_tangent"], np.asarray(tangent(x, v)[1])
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12 * np.abs(expected).max())
    ours = [len(m.optimized().graph) for m in (model, pushed)]
    theirs = [sum(1 for _ in equations(made.jaxpr)) for made in (jax.make_jaxpr(function)(x), jax.make_jaxpr(tangent)(x, v))]
    ratio, added = ours[1] / theirs[1], (ours[1] - ours[0]) / (theirs[1] - theirs[0])
    mark = "  larger" if ratio > LARGER else ""
    return (f"{twin.name:18} here {ours[0]:3} -> {ours[1]:3}, JAX {theirs[0]:3} -> {theirs[1]:3}: ratio {ratio:.2f}, "
            f"of what the tangent adds {added:.2f}{mark}")


# ---- times ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """The Jacobian of a perceptron with tanh, or the Hessian of the sum of its outputs; of one example or of several."""

    sizes: tuple[int, ...]
    second: bool = False
    examples: int = 0

    @property
    def name(self) -> str:
        made = f"{'Hessian' if self.second else 'Jacobian'} {'-'.join(map(str, self.sizes))}"
        return f"{made} of {self.examples} examples" if self.examples else made

    def function(self, dtype: DType) -> Callable[[Any, Any], Any]:
        """Return the function, in the functions that it is given first."""
        rng = np.random.default_rng(0)
        layers = [[(rng.standard_normal(shape) / np.sqrt(shape[0])).astype(dtype.numpy) for shape in ((n, m), (m,))]
                  for n, m in zip(self.sizes, self.sizes[1:], strict=False)]

        def apply(f: Any, x: Any) -> Any:
            for k, (w, bias) in enumerate(layers):
                x = x @ f.weight(w) + f.weight(bias)
                x = f.tanh(x) if k + 1 < len(layers) else x
            return f.total(x) if self.second else x

        return apply


MATRICES = (
    Matrix((32, 64, 64, 32)), Matrix((32, 64, 64, 1), second=True), Matrix((100, 64, 64, 100)),
    Matrix((32, 64, 64, 32), examples=100),
)


def compare_times(matrix: Matrix, dtype: DType) -> str:
    """Return the line of one matrix."""
    import jax

    function = matrix.function(dtype)
    model = Twin(function, (matrix.sizes[0],)).graph(dtype)
    made = hessian(model, "y", "x") if matrix.second else jacobian(model, "y", "x")
    theirs = (jax.hessian if matrix.second else jax.jacrev)(lambda x: function(Jax(), x))
    shape = (matrix.examples, matrix.sizes[0]) if matrix.examples else (matrix.sizes[0],)
    if matrix.examples:
        made, theirs = vmap(made), jax.vmap(theirs)
    x = np.random.default_rng(1).standard_normal(shape).astype(dtype.numpy)
    program, compiled, given = made.compile(threads=1), jax.jit(theirs), jax.numpy.asarray(x)
    (name,) = (o.name for o in made.outputs)
    got, expected = program.run({"x": x})[name], np.asarray(compiled(given))
    off = np.abs(got - expected).max() / np.abs(expected).max()
    mine, yours = seconds_in_turn([lambda: program.run({"x": x}), lambda: compiled(given).block_until_ready()])
    return (f"{matrix.name:38} {dtype.name}: off by {off:.0e}, processor {1e6 * mine[0]:.1f} us beside {1e6 * yours[0]:.1f} "
            f"({mine[0] / yours[0]:.2f}), clock {1e6 * mine[1]:.1f} beside {1e6 * yours[1]:.1f} ({mine[1] / yours[1]:.2f})")


def seconds_in_turn(calls: Sequence[Callable[[], Any]]) -> list[tuple[float, float]]:
    """Return, for each call, the median processor seconds and the least on the clock."""
    for call in calls:
        call()
    counts = [max(1, int(0.004 / _clocked(call, 3)[1])) for call in calls]
    rounds = [[_clocked(call, n) for call, n in zip(calls, counts, strict=True)] for _ in range(ROUNDS)]
    return [(statistics.median(p for p, _ in column), min(c for _, c in column)) for column in zip(*rounds, strict=True)]


def _clocked(call: Callable[[], Any], count: int) -> tuple[float, float]:
    """Return seconds of the processor and on the clock, a call."""
    processor, clock = time.process_time(), time.perf_counter()
    for _ in range(count):
        call()
    return (time.process_time() - processor) / count, (time.perf_counter() - clock) / count


# ---- the command ----------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(prog="python -m flowgrad.tools.maintenance.beside_jax",
                                     description="Sizes of tangent graphs and times of matrices beside JAX.")
    parser.add_argument("--sizes", action="store_true", help="count nodes")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    try:
        import jax
    except ImportError:
        parser.error("JAX is not installed; it comes with the extra: pip install 'flowgrad[bench]'")
    jax.config.update("jax_enable_x64", True)
    if arguments.sizes:
        for twin in TWINS:
            print(compare_sizes(twin), flush=True)
        return 0
    for matrix in MATRICES:
        for dtype in (FLOAT32, FLOAT64):
            print(compare_times(matrix, dtype), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
