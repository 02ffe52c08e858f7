"""A model as a function in PyTorch, its operators written a second time by the standard, and what torch.func makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from flowgrad.ir.graph import Array, Graph
from flowgrad.tools.maintenance import torch_functions as _functions  # noqa: F401
from flowgrad.tools.maintenance import torch_layers as _layers  # noqa: F401  declares operators
from flowgrad.tools.maintenance import torch_shapes as _shapes  # noqa: F401
from flowgrad.tools.maintenance.torch_nodes import Run, Tensor, run_graph, tensor

Tensors = dict[str, Tensor]
Arrays = dict[str, Array]


class Mirrored:
    """A graph at one set of inputs, as a function of the values in ``wrt``, in float64.

    ``feeds`` hold an array for each input; what is named in ``wrt`` is an input or a constant with data. Functions raise
    NoMirror for an operator that is not written in PyTorch.
    """

    def __init__(self, graph: Graph, feeds: Mapping[str, Array], wrt: Sequence[str]) -> None:
        self.graph = graph
        self.feeds = {name: tensor(a) for name, a in feeds.items()}
        self.held = [v for v in graph.constants if v.name in wrt]
        self.at: Tensors = {x: self.feeds[x] if x in feeds else tensor(graph.value(x).producer.data) for x in wrt}

    def outputs(self, at: Tensors, feeds: Tensors | None = None) -> Tensors:
        """Return every output; ``feeds`` replaces the other inputs."""
        given = {**self.feeds, **(feeds or {}), **at}
        inputs = [given[v.name] for v in self.graph.inputs]
        results = run_graph(self.graph, inputs, Run(0.0), {v: at[v.name] for v in self.held})
        return {e.name: y for e, y in zip(self.graph.output_entries, results, strict=True)}

    def jvp(self, along: Mapping[str, Array], of: Sequence[str]) -> Arrays:
        """Return J v, by output."""
        return _arrays(torch.func.jvp(self._part(of), (self.at,), (_tensors(along),))[1])

    def gradient(self, of: str) -> Arrays:
        """Return the gradient of a scalar output, by input."""
        return _arrays(torch.func.grad(self._scalar(of))(self.at))

    def hvp(self, along: Mapping[str, Array], of: str) -> Arrays:
        """Return H v, forward over reverse, by input."""
        return _arrays(torch.func.jvp(torch.func.grad(self._scalar(of)), (self.at,), (_tensors(along),))[1])

    def jacobian(self, of: str, *, forward: bool = False) -> Arrays:
        """Return the whole Jacobian of an output, by input."""
        made = torch.func.jacfwd if forward else torch.func.jacrev
        return _arrays(made(self._scalar(of))(self.at))

    def hessian(self, of: str) -> dict[tuple[str, str], Array]:
        """Return the second derivatives of a scalar output, by pairs of inputs."""
        found = torch.func.hessian(self._scalar(of))(self.at)
        return {(x, u): a.numpy(force=True) for x, row in found.items() for u, a in row.items()}

    def each(self, of: str, many: Mapping[str, Array]) -> Arrays:
        """Return the gradients of a scalar output, one for each example along the first axis of ``many``, by input.

        What ``many`` does not hold is shared by the examples. They go together by torch.func.vmap, or one after the other
        where a mirror reads numbers (shapes and indices that depend on an example), which vmap refuses.
        """
        feeds = _tensors(many)
        shared = {x: a for x, a in self.at.items() if x not in feeds}

        def gradient(feeds: Tensors) -> Tensors:
            at = shared | {x: feeds[x] for x in self.at if x in feeds}
            found: Tensors = torch.func.grad(lambda at: self.outputs(at, feeds)[of])(at)
            return found

        try:
            return _arrays(torch.func.vmap(gradient)(feeds))
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
        count = len(next(iter(feeds.values())))
        rows = [gradient({name: a[n] for name, a in feeds.items()}) for n in range(count)]
        return _arrays({x: torch.stack([row[x] for row in rows]) for x in self.at})

    def _part(self, of: Sequence[str]) -> Callable[[Tensors], Tensors]:
        return lambda at: {y: a for y, a in self.outputs(at).items() if y in of}

    def _scalar(self, of: str) -> Callable[[Tensors], Tensor]:
        return lambda at: self.outputs(at)[of]


def _tensors(arrays: Mapping[str, Array]) -> Tensors:
    return {name: tensor(a) for name, a in arrays.items()}


def _arrays(tensors: Tensors) -> Arrays:
    return {name: a.numpy(force=True) for name, a in tensors.items()}
