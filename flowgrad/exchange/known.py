"""Which operators of a file nobody defines: asked of its nodes alone, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnx import FunctionProto, NodeProto

import flowgrad.exchange.every_adapter  # noqa: F401  # declares them
from flowgrad.exchange.adapters import ADAPTERS, FORMULAS, HINTS, RENAMED
from flowgrad.exchange.functions import Key, domain_of, has_body, key_of, plain_body
from flowgrad.exchange.ml.reading import ML
from flowgrad.ir.errors import UnsupportedError, ValidationError
from flowgrad.ir.ops.registry import FLOWGRAD, find_op

ML_OPSET = 5
"""The newest opset of ai.onnx.ml that is known."""

Opsets = Mapping[str, int]


def check_known(main: Iterable[NodeProto], opsets: Opsets, functions: Mapping[Key, tuple[FunctionProto, Opsets]]) -> None:
    """Raise UnsupportedError with every operator that neither we nor a function define.

    Looked at are ``main``, the functions that it reaches, and the bodies that the standard gives for operators.
    """
    unknown: dict[str, list[str]] = {}
    work: list[tuple[Iterable[NodeProto], Opsets]] = [(main, opsets)]
    seen: set[Key | tuple[str, int]] = set()
    while work:
        nodes, versions = work.pop()
        known: set[Key] = set()
        for node in _with_inner(nodes):
            domain, op, _ = key = key_of(node)
            if key in known:
                continue
            if key in functions:
                if key not in seen:
                    seen.add(key)
                    function, own = functions[key]
                    work.append((function.node, own))
                continue
            version = _version(node, domain, versions)
            if is_known(domain, op):
                known.add(key)
                continue
            if domain or not has_body(op, version):
                unknown.setdefault(f"{domain}:{op}" if domain else op, []).append(_label(node))
            elif (body := plain_body(op, version)) is not None and (op, version) not in seen:
                seen.add((op, version))
                work.append((body.node, {domain_of(o.domain): o.version for o in body.opset_import}))
    if unknown:
        listed = ", ".join(f"{op} (node {names[0]!r}{f' and {len(names) - 1} more' if names[1:] else ''})"
                           for op, names in sorted(unknown.items()))
        hints = "".join(hint for domain, hint in HINTS.items() if any(op.startswith(f"{domain}:") for op in unknown))
        raise UnsupportedError(f"{len(unknown)} operators are not supported: {listed}{hints}", code="op")


def _with_inner(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes, and those of their subgraphs."""
    stack = [nodes]
    while stack:
        for node in stack.pop():
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    stack.append(attribute.g.node)
                stack += [graph.node for graph in attribute.graphs]


def _label(node: NodeProto) -> str:
    return node.name or next(iter(node.output), "")


def _version(node: NodeProto, domain: str, versions: Opsets) -> int:
    version = versions.get(domain)
    if version is None:
        raise ValidationError(f"the file imports no opset of domain {domain or 'ai.onnx'!r}, which {node.op_type} needs",
                              code="opset", where=_label(node))
    if domain == ML and not 1 <= version <= ML_OPSET:
        raise UnsupportedError(f"opset {version} of {ML} is not supported, only 1 to {ML_OPSET}", code="opset")
    return version


def is_known(domain: str, op: str) -> bool:
    """Return whether an operator has a form here or an adapter; one that the standard gives a body alone has not."""
    if domain:
        return (domain, op) in ADAPTERS
    definition = find_op(RENAMED.get(op, op))
    return op == "Constant" or op in FORMULAS or (definition is not None and definition.domain != FLOWGRAD)
