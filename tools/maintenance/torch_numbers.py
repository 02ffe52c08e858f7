"""The numbers that PyTorch gives for a random graph: values, first and second derivatives, and what rounding does to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.tools.maintenance import torch_functions as _functions  # noqa: F401
from flowgrad.tools.maintenance import torch_layers as _layers  # noqa: F401  declares operators
from flowgrad.tools.maintenance import torch_shapes as _shapes  # noqa: F401
from flowgrad.tools.maintenance.torch_nodes import Run, Tensor, run_graph, tensor

torch.set_num_threads(1)


@dataclass
class Seeds:
    """What derivatives are taken along: cotangents by output name, tangents and second cotangents by the name of x."""

    cotangents: dict[str, Array]
    tangents: dict[str, Array]
    seconds: dict[str, Array]


Numbers = dict[tuple[str, str], Array]
"""Arrays by what they are ("value", "vjp", "jvp", "second") and the name of the output, or of what they belong to."""


class Theirs:
    """A graph at one set of inputs, in PyTorch."""

    def __init__(self, graph: Graph, given: Mapping[str, Array], wrt: Sequence[str], run: Run, forward: bool = True) -> None:
        self.graph, self.run, self.forward = graph, run, forward
        self.leaves: dict[str, Tensor] = {}
        self.given = {k: tensor(a) for k, a in given.items()}
        self.held: dict[Value, Tensor] = {}
        for name in wrt:
            value = graph.value(name)
            leaf = self.given[name] if name in self.given else tensor(value.producer.data)
            self.leaves[name] = leaf.requires_grad_()
            if name not in self.given:
                self.held[value] = leaf
        self.outputs = self._outputs(self.leaves)

    def _outputs(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs = [leaves.get(v.name, self.given[v.name]) for v in self.graph.inputs]
        held = {v: leaves[v.name] for v in self.held}
        results = run_graph(self.graph, inputs, self.run, held)
        return {e.name: y for e, y in zip(self.graph.output_entries, results, strict=True)}

    def values(self) -> Numbers:
        """Return every output."""
        return {("value", name): y.numpy(force=True) for name, y in self.outputs.items()}

    def derivatives(self, seeds: Seeds) -> Numbers:
        """Return vjp, jvp, and the vjp of the vjp with respect to x and to the cotangents."""
        cotangents = {name: tensor(a).requires_grad_() for name, a in seeds.cotangents.items()}
        names, leaves = list(self.leaves), list(self.leaves.values())
        gradients = dict(zip(names, _pulled([(self.outputs[n], ct) for n, ct in cotangents.items()], leaves), strict=True))
        found: Numbers = {("vjp", x): g.numpy(force=True) for x, g in gradients.items()}
        ends = [*leaves, *cotangents.values()]
        second = _pulled([(gradients[x], tensor(s)) for x, s in seeds.seconds.items()], ends)
        found |= {("second", x): g.numpy(force=True) for x, g in zip([*names, *cotangents], second, strict=True)}
        tangents = {x: tensor(a) for x, a in seeds.tangents.items()}
        for name, moved in self._pushed(tangents, cotangents, gradients).items():
            found["jvp", name] = moved.numpy(force=True)
        return found

    def _pushed(self, tangents: Mapping[str, Tensor], cotangents: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
                ) -> dict[str, Tensor]:
        if self.forward and not any(n.op == "StopGradient" for n in self.graph.nodes()):  # detach keeps tangents
            try:
                return self._forward(tangents, list(cotangents))
            except NotImplementedError:  # PyTorch has no forward rule for some operator
                pass
        found = _pulled([(gradients[x], t) for x, t in tangents.items()], list(cotangents.values()))
        return dict(zip(cotangents, found, strict=True))

    def _forward(self, tangents: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        with forward_ad.dual_level():
            duals = {x: forward_ad.make_dual(leaf.detach(), tangents[x]) for x, leaf in self.leaves.items()}
            found = {}
            for name, y in self._outputs(duals).items():
                if name in names:
                    moved = forward_ad.unpack_dual(y).tangent
                    found[name] = torch.zeros_like(y) if moved is None else moved
            return found


def _pulled(pairs: Sequence[tuple[Tensor, Tensor]], ends: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of the sum of <y, cotangent> over pairs; zeros where nothing depends on an end."""
    live = [(y, ct) for y, ct in pairs if y.requires_grad]
    if not live:
        return [torch.zeros_like(x) for x in ends]
    found = torch.autograd.grad([y for y, _ in live], list(ends), [ct for _, ct in live], create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(ends, found, strict=True)]


class Rounding(TorchDispatchMode):  # type: ignore[misc]
    """Makes every result of every operation, backward ones too, wrong by up to one unit in the last place of a type."""

    def __init__(self, seed: int, unit: float) -> None:
        super().__init__()
        self.source = torch.Generator().manual_seed(seed)
        self.unit = unit

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        aliased = any(r.alias_info is not None for r in function._schema.returns)
        if aliased or not isinstance(made, torch.Tensor) or made.dtype != torch.float64:
            return made
        if made._is_zerotensor():  # zeros without memory, which fail inside of a mode
            return torch.zeros(made.shape, dtype=made.dtype)
        return made * (1 + self.unit * (2 * torch.rand(made.shape, generator=self.source, dtype=torch.float64) - 1))


def spread(graph: Graph, given: Mapping[str, Array], wrt: Sequence[str], seeds: Seeds | None, plain: Numbers, unit: float,
           times: int = 8) -> Numbers:
    """Return how far each number moves when every operation rounds to ``unit``: the largest distance of some draws."""
    found: Numbers = {}
    for k in range(times):
        with Rounding(k, unit):
            theirs = Theirs(graph, given, wrt, Run(0.0), forward=False)
            numbers = theirs.values() | ({} if seeds is None else theirs.derivatives(seeds))
        for key, array in plain.items():
            if array.dtype.kind == "f":
                same = numbers[key].shape == array.shape
                moved = np.abs(numbers[key] - array) if same else np.full(array.shape, np.inf)
                found[key] = np.maximum(found.get(key, np.zeros(())), moved)
    return found
