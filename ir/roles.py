"""The roles of a model in its files: an entry of the graph's metadata, taken out again when it is loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from flowgrad.ir.graph import Graph

Role = tuple[str, str, str]

KEY = "flowgrad.roles"


def with_roles(graph: Graph, roles: Mapping[Role, str]) -> Graph:
    """Return a view of ``graph``, for writing alone, whose metadata hold the roles."""
    if not roles:
        return graph
    import json

    view = copy.copy(graph)
    view.metadata = {**graph.metadata, KEY: json.dumps([[*role, name] for role, name in roles.items()])}
    return view


def take_roles(graph: Graph) -> dict[Role, str]:
    """Take the roles out of the metadata of a graph that was read; what is no list of roles stays there."""
    if KEY not in graph.metadata:
        return {}
    import json

    try:
        rows = json.loads(graph.metadata[KEY])
    except (RecursionError, ValueError):
        return {}
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        return {}
    known = {*(v.name for v in graph.inputs), *(e.name for e in graph.output_entries)}
    graph.metadata.pop(KEY, None)
    return {(role, of, wrt): name for role, of, wrt, name in rows if name in known}


def _is_row(row: object) -> bool:
    return isinstance(row, list) and len(row) == 4 and all(isinstance(item, str) for item in row)


CASADI = {"grad": "adj_{wrt}", "cotangent": "adj_{of}", "tangent": "fwd_{of}{wrt}", "hvp": "fwd_adj_{wrt}",
          "jacobian": "jac_{of}_{wrt}", "hessian": "hess_{of}_{wrt}", "hessian_diagonal": "hess_{of}_{wrt}_diag"}
"""What CasADi calls what has a role: seeds and sensitivities after the values they belong to."""


def casadi_named(graph: Graph, roles: Mapping[Role, str]) -> tuple[Graph, dict[Role, str]]:
    """Return a copy of ``graph`` whose inputs and outputs with a role bear CasADi's names (unique, if taken), and the roles."""
    graph, renamed = graph.copy(), dict(roles)
    inputs, entries = {v.name: v for v in graph.inputs}, graph.output_entries
    outputs = {e.name: e.name for e in entries}
    for (role, of, wrt), name in roles.items():
        pattern = CASADI.get(role)
        if pattern is None:
            continue
        wanted = pattern.format(of=of.replace(",", "_"), wrt=wrt.replace(",", "_"))
        if name in inputs:
            renamed[role, of, wrt] = graph.unique_name(wanted)
            graph.rename(inputs.pop(name), renamed[role, of, wrt])
        elif outputs.get(name) == name:
            taken = {*outputs.values(), *(v.name for v in graph.inputs)}
            made = wanted if wanted not in taken else graph.unique_output_name(graph.unique_name(wanted))
            renamed[role, of, wrt] = outputs[name] = made
    values = [(outputs[e.name], e.input(0)) for e in entries]
    for entry in entries:
        graph.remove(entry)
    for name, value in values:
        graph.add_output(value, name)
    return graph, renamed
