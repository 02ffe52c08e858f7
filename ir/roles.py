"""The roles of a model in its files: an entry of the graph's metadata, taken out again when it is loaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

from flowgrad.ir.graph import Graph

Role = tuple[str, str, str]

KEY = "flowgrad.roles"


def with_roles(graph: Graph, roles: Mapping[Role, str]) -> Graph:
    """Return a view of ``graph``, for writing alone, whose metadata hold the roles."""
    if not roles:
        return graph
    view = copy.copy(graph)
    view.metadata = {**graph.metadata, KEY: json.dumps([[*role, name] for role, name in roles.items()])}
    return view


def take_roles(graph: Graph) -> dict[Role, str]:
    """Take the roles out of the metadata of a graph that was read; what is no list of roles stays there."""
    try:
        rows = json.loads(graph.metadata.get(KEY, "[]"))
    except (RecursionError, ValueError):
        return {}
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        return {}
    known = {*(v.name for v in graph.inputs), *(e.name for e in graph.output_entries)}
    graph.metadata.pop(KEY, None)
    return {(role, of, wrt): name for role, of, wrt, name in rows if name in known}


def _is_row(row: object) -> bool:
    return isinstance(row, list) and len(row) == 4 and all(isinstance(item, str) for item in row)
