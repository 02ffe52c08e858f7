"""The table of operator cases: every op has rows; the tests in test_ops.py are made from it.

A row gives the op, its inputs and attributes. Inputs are float64 by default, so that derivatives can be checked by
differences. The rows live in ``cases/<family>.py``, one file a family, as ``CASES``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.types import Dim, Type, type_of


@dataclass(frozen=True)
class In:
    """One input of a case: how to make it, and whether it is a constant of the graph or fed at run time."""

    make: Callable[[np.random.Generator], Array]
    constant: bool = False
    differentiable: bool = True


def normal(*shape: int, dtype: str = "float64") -> In:
    """Standard normal numbers."""
    return In(lambda rng: rng.standard_normal(shape).astype(dtype))


def positive(*shape: int, low: float = 0.5, high: float = 2.0, dtype: str = "float64") -> In:
    """Uniform numbers between ``low`` and ``high``."""
    return In(lambda rng: rng.uniform(low, high, shape).astype(dtype))


def away(*shape: int, gap: float = 0.1, dtype: str = "float64") -> In:
    """Numbers of both signs at least ``gap`` away from zero."""
    return In(lambda rng: (rng.choice([-1.0, 1.0], shape) * rng.uniform(gap, 2.0, shape)).astype(dtype))


def distinct(*shape: int, dtype: str = "float64") -> In:
    """Numbers that differ from each other by at least 0.1, in random order."""
    return In(lambda rng: (rng.permutation(int(np.prod(shape))).reshape(shape) * 0.1 - 0.05 * np.prod(shape)
                           + 0.033).astype(dtype))


def fixed(data: Any, dtype: str | None = None) -> In:
    """Given data, fed at run time."""
    return In(lambda rng: np.asarray(data, dtype))


def const(data: Any, dtype: str | None = None) -> In:
    """Given data, a constant of the graph (lists of integers become int64)."""
    return In(lambda rng: np.asarray(data, dtype), constant=True, differentiable=False)


def held(spec: In) -> In:
    """The same input, which no derivative is asked for (a ratio, a scale that acts on shapes)."""
    return In(spec.make, spec.constant, differentiable=False)


@dataclass(frozen=True)
class Case:
    """One application of an op and what may be expected of it.

    ``reference``: whether onnx.reference knows the op and is right (else ``expected`` is called with the input
    arrays and attributes and returns the outputs). ``smooth``: whether differences are meaningful at the sampled
    point (False leaves out the difference checks; say why in ``note``). ``second``: whether second derivatives are
    checked. ``symbolic``: whether the case is also run with every extent of its run-time inputs known only at run time.
    ``step``: the step of the central differences.
    """

    op: str
    inputs: Sequence[In | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int | Sequence[str] = 1
    name: str = ""
    reference: bool = True
    expected: Callable[..., Any] | None = None
    smooth: bool = True
    second: bool = True
    symbolic: bool = True
    refuses: bool = False
    step: float = 1e-3
    rtol: float = 1e-8
    note: str = ""
    build: Callable[..., Any] | None = None
    """For ops with subgraphs: ``build(b, values) -> Node`` makes the node from its input values."""

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}" if self.name else self.op

    def arrays(self, seed: int = 0) -> list[Array | None]:
        """Return the input arrays of this case; the same for the same seed."""
        rng = np.random.default_rng(seed)
        return [None if spec is None else spec.make(rng) for spec in self.inputs]

    def graph(self, arrays: Sequence[Array | None], symbolic: bool = False, types: Sequence[Type | None] = ()
              ) -> tuple[Graph, Node]:
        """Return a graph with the one node of this case; run-time inputs are called x0, x1, ... by position.

        ``types``, if given, are those of the inputs.
        """
        graph = Graph("case")
        b = Builder(graph)
        values: list[Value | None] = []
        for index, (spec, array) in enumerate(zip(self.inputs, arrays, strict=True)):
            if spec is None or array is None:
                values.append(None)
            elif spec.constant:
                values.append(graph.add_constant(array))
            else:
                values.append(graph.add_input(f"x{index}", (types and types[index]) or _type(array, index, symbolic)))
        if self.build is not None:
            node: Node = self.build(b, values)
        else:
            node = b.add_node(self.op, values, self.attributes, outputs=self.outputs)
        for value in node.results:
            graph.add_output(value)
        return graph, node

    def feeds(self, arrays: Sequence[Array | None]) -> dict[str, Array]:
        """Return the run-time inputs by name."""
        return {f"x{i}": a for i, (s, a) in enumerate(zip(self.inputs, arrays, strict=True))
                if s is not None and a is not None and not s.constant}


def _type(array: Array, index: int, symbolic: bool) -> Type:
    return symbolic_type(array, index) if symbolic else type_of(array)


def symbolic_type(array: Array, index: int) -> Type:
    """Return the type of an array, with named dims for its extents."""
    return type_of(array).with_shape(tuple(Dim.named(f"n{index}_{axis}") for axis in range(array.ndim)))


def forms(cases: Sequence[Case]) -> list[Any]:
    """Return parameters (case, symbolic): each case with known extents, then with symbolic ones where it can have them."""
    return [pytest.param(case, symbolic, id=f"{case.id}-{'symbolic' if symbolic else 'static'}")
            for symbolic in (False, True) for case in cases if case.symbolic or not symbolic]


def all_cases() -> list[Case]:
    """Return the rows of all families, with unique ids."""
    found: list[Case] = []
    for family in sorted(p.stem for p in (Path(__file__).parent / "cases").glob("*.py")):
        found += importlib.import_module(f"tests.cases.{family}").CASES
    return found
