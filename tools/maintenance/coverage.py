"""``python -m flowgrad.tools.maintenance.coverage``: write docs/operators.md, the table of what happens to each operator.

The last column runs the cases of the backend suite that ships with onnx: passed of all. A test compares the others.
"""

from __future__ import annotations

import collections
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import defs

from flowgrad.exchange.adapters import ADAPTERS, RENAMED
from flowgrad.exchange.functions import has_body
from flowgrad.exchange.known import is_known
from flowgrad.exchange.microsoft import DOMAIN
from flowgrad.ir.errors import FlowgradError
from flowgrad.ir.files import write_text
from flowgrad.ir.ops.registry import FLOWGRAD, OpDef, Trait, all_ops, find_op
from flowgrad.tools.maintenance.yardstick import run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operators.md"

DOMAINS = {"": "ai.onnx", "ai.onnx.ml": "ai.onnx.ml", "ai.onnx.preview": "ai.onnx.preview",
           "ai.onnx.preview.training": "ai.onnx.preview.training", DOMAIN: DOMAIN}

HEAD = """# Operators

What becomes of each operator of the standard, and of those of other domains that are read. Made by
`python -m flowgrad.tools.maintenance.coverage`.

* *forward*: `own` has an operator of its own here; `body` is read as the function that the standard gives; `standard` is
  read as operators of the standard; `refused` is named when a file is loaded.
* *derivative*: `rule` is written down; `expansion` is that of the operators it expands to; `body`, `standard` likewise;
  `zero` is piecewise constant or of integers: asking for it is an error that says so, unless zeros are allowed.
* *from*: the first opset in which it is read.
* *cases*: of the backend suite of onnx, how many give the stored outputs. Those of Bernoulli are random numbers; six of
  Attention in float16 and bfloat16 differ in the last bit.
"""


def derivative_of(definition: OpDef) -> str:
    """Return how cotangents pass an operator of our own."""
    if Trait.ZERO in definition.traits:
        return "zero"
    if Trait.NON_DIFFERENTIABLE in definition.traits:
        return "refused"
    return "rule" if definition.adjoint_rule or definition.partial_rule else "expansion"


def fate(domain: str, op: str, version: int) -> tuple[str, str]:
    """Return the columns forward and derivative of an operator."""
    if not domain and is_known("", op):
        definition = find_op(RENAMED.get(op, op))
        return ("own", "zero") if definition is None else ("own", derivative_of(definition))
    if domain and (domain, op) in ADAPTERS:
        return "standard", "standard"
    if not domain and has_body(op, version):
        return "body", "body"
    return "refused", "-"


def rows() -> list[tuple[str, str, str, str, str]]:
    """Return (domain, operator, forward, derivative, from) of all operators, domain by domain."""
    first: dict[tuple[str, str], int] = {}
    last: dict[tuple[str, str], int] = {}
    for schema in defs.get_all_schemas_with_history():
        key = schema.domain, schema.name
        if schema.domain in DOMAINS and not schema.deprecated:
            first[key] = min(first.get(key, schema.since_version), schema.since_version)
            last[key] = max(last.get(key, 0), schema.since_version)
    for key in ADAPTERS:
        if key[0] == DOMAIN:
            first[key], last[key] = 1, 1
    order = list(DOMAINS)
    found = []
    for domain, op in sorted(first, key=lambda k: (order.index(k[0]), k[1])):
        forward, derivative = fate(domain, op, last[domain, op])
        found.append((DOMAINS[domain], op, forward, derivative, str(first[domain, op])))
    return found


def _cases() -> Iterator[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from collect_testcases(None)


def passed_cases() -> Mapping[tuple[str, str], tuple[int, int]]:
    """Return how many cases of the backend suite pass, and how many there are, by domain and operator."""
    counts: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0])
    for case in _cases():
        node = case.model.graph.node[-1]
        if case.name.endswith("_expanded"):
            continue
        counts[node.domain, node.op_type][1] += 1
        counts[node.domain, node.op_type][0] += all(_passes(case, *data) for data in case.data_sets)
    return {key: (passed, total) for key, (passed, total) in counts.items()}


def _passes(case: Any, inputs: Any, expected: Any) -> bool:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = run(case.model, [_array(x) for x in inputs])
            return len(found) == len(expected) and all(_same(a, _array(e), case) for a, e in zip(found, expected, strict=True))
    except (FlowgradError, NotImplementedError):
        return False


def _array(given: Any) -> Any:
    if isinstance(given, onnx.TensorProto):
        return onnx.numpy_helper.to_array(given)
    if isinstance(given, onnx.SequenceProto):
        return onnx.numpy_helper.to_list(given)
    return onnx.numpy_helper.to_optional(given) if isinstance(given, onnx.OptionalProto) else given


def _same(found: Any, expected: Any, case: Any) -> bool:
    if expected is None or isinstance(expected, (list, tuple)):
        return type(found) is type(expected) is list and len(found) == len(expected) and all(
            _same(a, e, case) for a, e in zip(found, expected, strict=True)) or found is expected is None
    expected = np.asarray(expected)
    if found.shape != expected.shape:
        return False
    if expected.dtype.kind in "OUS" or found.dtype == object:
        return bool(np.array_equal(found.astype(str), expected.astype(str)))
    if found.dtype != expected.dtype:
        return False
    return bool(np.allclose(found.astype(np.complex128), expected.astype(np.complex128), case.rtol, case.atol, equal_nan=True))


def page(cases: Mapping[tuple[str, str], tuple[int, int]]) -> str:
    """Return the page."""
    table = rows()
    domains = {name: domain for domain, name in DOMAINS.items()}
    counts = collections.Counter((domain, forward) for domain, _, forward, _, _ in table)
    lines = [HEAD]
    for name in DOMAINS.values():
        told = ", ".join(f"{n} {forward}" for (d, forward), n in sorted(counts.items()) if d == name)
        lines += [f"## {name}\n", f"{told}.\n", "| operator | forward | derivative | from | cases |", "|---|---|---|---|---|"]
        for domain, op, forward, derivative, since in table:
            if domain == name:
                passed, total = cases.get((domains[name], op), (0, 0))
                lines.append(f"| {op} | {forward} | {derivative} | {since} | {f'{passed} of {total}' if total else ''} |")
        lines.append("")
    own = sorted(o.name for o in all_ops().values() if o.domain == FLOWGRAD)
    lines += ["## flowgrad\n", "What derivatives are made with; export writes each as operators of the standard.\n",
              ", ".join(own) + "."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page and print how many cases pass."""
    cases = passed_cases()
    write_text(PAGE, page(cases))
    print(f"{PAGE}: {sum(p for p, _ in cases.values())} of {sum(t for _, t in cases.values())} cases pass")
    return 0


if __name__ == "__main__":
    sys.exit(main())
