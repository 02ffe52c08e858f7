"""Differentiation and expansion as named passes of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, suggestion
from flowgrad.ir.graph import CONSTANT, INITIALIZER, PARAMETER, Graph, Value
from flowgrad.ir.ops.registry import Trait, find_op, opdef
from flowgrad.passes.adjoint import adjoint
from flowgrad.passes.expand import expand
from flowgrad.passes.registry import pass_
from flowgrad.passes.tangent import tangent


@pass_("adjoint", kind="extends")
def adjoint_pass(graph: Graph, *, wrt: tuple[str, ...] = ("inputs",), of: tuple[str, ...] = ()) -> None:
    """Append gradients: inputs ``y_grad`` for what is differentiated (none for a scalar), outputs ``x_grad``.

    ``wrt`` takes names, "inputs" and "params" (the float initializers of rank 1 and more); ``of`` takes names of
    outputs, by default all float ones.
    """
    values = _wrt(graph, wrt)
    seeds = []
    for name, y in _of(graph, of):
        if y.type.size == 1:
            seeds.append((y, Builder(graph, prefix=name).filled(1, y)))
        else:
            seeds.append((y, graph.add_input(graph.unique_name(f"{name}_grad"), y.type)))
    for x, x_bar in zip(values, adjoint(graph, seeds, values), strict=True):
        graph.add_output(x_bar or Builder(graph, prefix=x.name).zeros_like(x), _output_name(graph, f"{x.name}_grad"))


@pass_("tangent", kind="extends")
def tangent_pass(graph: Graph, *, wrt: tuple[str, ...] = ("inputs",), of: tuple[str, ...] = ()) -> None:
    """Append tangents: inputs ``x_tangent`` for each x in ``wrt``, outputs ``y_tangent`` for each y in ``of``."""
    values, outputs = _wrt(graph, wrt), _of(graph, of)
    pairs = [(x, graph.add_input(graph.unique_name(f"{x.name}_tangent"), x.type)) for x in values]
    for (name, y), y_dot in zip(outputs, tangent(graph, pairs, [y for _, y in outputs]), strict=True):
        graph.add_output(y_dot or Builder(graph, prefix=name).zeros_like(y), _output_name(graph, f"{name}_tangent"))


@pass_("expand", kind="rounding")
def expand_pass(graph: Graph, *, ops: tuple[str, ...] = ()) -> None:
    """Replace ops by their expansions into plain ONNX: those in ``ops``, by default those of the flowgrad domain.

    StopGradient stays unless it is named: in plain ONNX it is an Identity, through which derivatives pass.
    """
    for name in ops:
        if opdef(name).expansion_rule is None:
            raise InputError(f"{name} has no expansion", code="option")
    chosen = set(ops)

    def select(op: str) -> bool:
        definition = find_op(op)
        if definition is None or definition.expansion_rule is None:
            return False
        return op in chosen if chosen else definition.own and Trait.ZERO not in definition.traits

    expand(graph, lambda node: select(node.op))


def _wrt(graph: Graph, names: Sequence[str]) -> list[Value]:
    chosen: dict[Value, None] = {}
    for name in names:
        if name in graph.values:
            chosen[graph.values[name]] = None
        elif name == "inputs":
            chosen.update(dict.fromkeys(v for v in graph.inputs if v.type.dtype.is_float))
        elif name == "params":
            chosen.update(dict.fromkeys(_parameters(graph)))
        else:
            raise InputError(f"no value {name!r}{suggestion(name, graph.values)}", code="name")
    for value in chosen:
        if not value.type.dtype.is_float:
            raise InputError(f"{value.name!r} is {value.type.dtype.name}: only floats have derivatives", code="dtype")
        if value.producer.op == CONSTANT:
            graph.set_role(value, PARAMETER)
    if not chosen:
        raise InputError(f"wrt={','.join(names)} names nothing", code="name")
    return list(chosen)


def _parameters(graph: Graph) -> list[Value]:
    return [v for v in graph.constants if v.type.dtype.is_float and v.type.rank and v.uses
            and v.producer.role in (INITIALIZER, PARAMETER)]


def _of(graph: Graph, names: Sequence[str]) -> list[tuple[str, Value]]:
    entries = {e.name: e.input(0) for e in graph.output_entries}
    for name in names:
        if name not in entries:
            raise InputError(f"no output {name!r}{suggestion(name, entries)}", code="name")
    return [(n, v) for n, v in entries.items() if (n in names if names else v.type.dtype.is_float)]


def _output_name(graph: Graph, name: str) -> str:
    taken = {e.name for e in graph.output_entries}
    return next(n for n in (name, *(f"{name}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)


