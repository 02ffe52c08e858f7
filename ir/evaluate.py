"""The reference evaluator: kernels one by one, in topological order. What folding and subgraph kernels run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flowgrad.ir.errors import FlowgradError, ResourceError, RunError
from flowgrad.ir.feeds import Signature
from flowgrad.ir.graph import CONSTANT, Array, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.limits import Limits, Meter
from flowgrad.ir.ops.control.loop_layout import Subgraph
from flowgrad.ir.ops.registry import OpDef, opdef
from flowgrad.ir.process_state import quiet
from flowgrad.ir.reach import needed_nodes
from flowgrad.ir.types import DType, dtype_of

Kernel = Callable[..., Any]


def evaluate(
    graph: Graph,
    feeds: Mapping[str, Array] | None = None,
    *,
    rng: np.random.Generator | None = None,
    fetch: Sequence[Value] | None = None,
) -> dict[str, Array]:
    """Run ``graph`` and return its outputs by name (or the values in ``fetch`` by theirs).

    ``feeds`` gives every graph input, and may replace parameters. Raises InputError for a wrong name, dtype or shape,
    RunError where a kernel fails.
    """
    arrays = Signature(graph).checked(feeds or {})
    bound = {graph.value(name): array for name, array in arrays.items()}
    wanted = [n.input(0) for n in graph.output_entries] if fetch is None else list(fetch)
    names = [n.name for n in graph.output_entries] if fetch is None else [v.name for v in fetch]
    results = run_values(graph, bound, wanted, rng or np.random.default_rng())
    return dict(zip(names, results, strict=True))


def run_values(
    graph: Graph, feeds: Mapping[Value, Array], wanted: Sequence[Value], rng: np.random.Generator | None, meter: Meter | None = None
) -> list[Array]:
    """Run the nodes that ``wanted`` needs and return its arrays; everything else is freed after its last use."""
    needed = needed_nodes(graph.nodes(), wanted)
    arrays: dict[Value, Array] = dict(feeds)
    left: dict[Value, int] = {}
    for node in needed:
        for value in node.operands:
            left[value] = left.get(value, 0) + 1
    for value in wanted:
        left[value] = left.get(value, 0) + 1
    for constant in graph.constants:
        if constant in left and constant not in arrays and constant.producer.data is not None:
            arrays[constant] = constant.producer.data
    for node in needed:
        inputs = [None if v is None else arrays[v] for v in node.inputs]
        results = call_node(node, inputs, [arrays[v] for v in node.captures], rng, meter)
        for made, result in zip(node.outputs, results, strict=False):
            if made is not None and result is not None and made in left:
                arrays[made] = result
        for value in node.operands:
            left[value] -= 1
            if not left[value] and value.producer.op != CONSTANT:
                arrays.pop(value, None)
    return [arrays[v] for v in wanted]


@quiet
def call_node(
    node: Node, inputs: Sequence[Array | None], captures: Sequence[Array], rng: np.random.Generator | None,
    meter: Meter | None = None,
) -> list[Array | None]:
    """Run one node on arrays; returns one array per output of the node (None for one left out).

    ``rng`` draws random numbers; None for a node that draws none, neither itself nor in a subgraph. ``meter`` counts
    the calls of subgraphs, at all depths (default: within the default limits).
    """
    definition = opdef(node.op)
    keywords = kernel_keywords(node, definition)
    if "subgraphs" in definition.special:
        counted = meter or Meter(Limits.default())
        keywords["subgraphs"] = {name: _runner(g, captures, rng, counted) for name, g in node.subgraphs.items()}
    if "rng" in definition.special:
        keywords["rng"] = rng
    try:
        result = bind_kernel(node, definition)(*inputs, **keywords)
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        return [None if v is None else fitted(r, v.type.dtype) for v, r in zip(node.outputs, results, strict=False)]
    except FlowgradError:
        raise
    except MemoryError as error:
        raise ResourceError(f"out of memory: {error}", code="memory", where=describe(node)) from error
    except (ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        shapes = ", ".join("-" if a is None else f"{a.dtype}{list(a.shape)}" for a in inputs)
        raise RunError(f"{node.op} failed on ({shapes}): {error}", code="kernel", where=describe(node)) from error


def kernel_keywords(node: Node, definition: OpDef) -> dict[str, Any]:
    """Return the attributes of ``node`` (defaults filled in) and the special keywords that need no run."""
    keywords = {name: definition.attribute(node, name) for name in definition.attributes}
    if "count" in definition.special:
        keywords["count"] = len(node.outputs)
    if "to_dtype" in definition.special:
        keywords["to_dtype"] = node.results[0].type.dtype.numpy
    return keywords


def bind_kernel(node: Node, definition: OpDef) -> Kernel:
    """Return the kernel of ``node``, computing in float32 where narrower floats go in (views keep their dtype)."""
    narrow = any(v.type.dtype.is_narrow for v in node.operands)
    if not narrow or "subgraphs" in definition.special or "to_dtype" in definition.special:
        return definition.kernel
    kernel = definition.kernel

    def widened(*inputs: Array | None, **keywords: Any) -> Any:
        wide = [a.astype(np.float32) if a is not None and dtype_of(a.dtype).is_narrow else a for a in inputs]
        return kernel(*wide, **keywords)

    return widened



def fitted(result: Any, dtype: DType) -> Array:
    """Return what a kernel returned as an array of the declared dtype."""
    array = np.asarray(result)
    return array if array.dtype == dtype.numpy else array.astype(dtype.numpy)


def _runner(graph: Graph, captures: Sequence[Array], rng: np.random.Generator | None, meter: Meter) -> Subgraph:
    formals, wanted = graph.inputs, graph.outputs

    def run(*arrays: Array) -> list[Array]:
        meter.step()
        return run_values(graph, dict(zip(formals, (*arrays, *captures), strict=True)), wanted, rng, meter)

    return Subgraph(graph, captures, run, meter)
