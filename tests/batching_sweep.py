"""Every operator case for many examples at once: ``python -m tests.batching_sweep [PART OF A CASE'S NAME]``.

For each case, static and symbolic: the values of examples, of examples of examples, of 0 and 1 of them, of its derivatives, the
derivatives of its examples, and both in onnxruntime, against runs one by one. Prints one line per failure, counts at the
end; exits 1 if there is a failure. ``test_batching_cases.py`` does a part of this.
"""

from __future__ import annotations

import argparse
import collections
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import onnxruntime

import flowgrad as fg
from flowgrad.exchange.writer import write_onnx
from flowgrad.ir.batching import within_batch
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, NotDifferentiableError, UnsupportedError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.ops.registry import op, opdef
from flowgrad.ir.registry import scoped
from flowgrad.ir.verify import verify
from flowgrad.model import Model
from tests.op_cases import Case, all_cases

Feeds = dict[str, Array]

PRODUCTS = {"Conv", "ConvInputGrad", "ConvTranspose", "ConvWeightGrad", "DeformConv", "Einsum", "Gemm", "MatMul"}
"""Operators whose sums of products a batch may add up in another order; all others give the same bits."""

SUBSETS = ("all", "first", "others")


def subset(case: Case, how: str) -> list[int]:
    """Return which inputs are one per example: all that are fed and steer no extents, the first of them, or the others."""
    extents = opdef(case.op).extents
    fed = [i for i, spec in enumerate(case.inputs) if spec is not None and not spec.constant and i not in extents]
    return {"all": fed, "first": fed[:1] if len(fed) > 1 else [], "others": fed[1:]}[how]


def draws(case: Case, count: int) -> list[Feeds] | None:
    """Return the feeds of so many examples, or None if the case draws its extents."""
    found = [case.feeds(case.arrays(seed)) for seed in range(count)]
    for feeds in found[1:]:
        if any(a.shape != found[0][name].shape for name, a in feeds.items()):
            return None
    return found


def stacked(examples: Sequence[Feeds], names: Sequence[str]) -> Feeds:
    """Return the feeds of all examples at once; those that are not in ``names`` are the first example's."""
    return {**examples[0], **{name: np.stack([feeds[name] for feeds in examples]) for name in names}}


def one_of(many: Feeds, names: Sequence[str], k: int) -> Feeds:
    """Return the feeds of example ``k``."""
    return {name: a[k, ...] if name in names else a for name, a in many.items()}


def agree(found: Mapping[str, Array], wanted: Sequence[Mapping[str, Array]], rtol: float) -> None:
    """Check that what was found for all examples is what each gives: the same bits, or within rounding of the largest."""
    for k, one in enumerate(wanted):
        for name, expected in one.items():
            actual = found[name][k, ...]
            assert actual.shape == expected.shape and actual.dtype == expected.dtype, f"{name}[{k}]"
            if not rtol or expected.dtype.kind not in "fc":
                assert _same_bits(actual, expected), f"{name}[{k}]: {actual} is not {expected}"
                continue
            finite = np.abs(expected[np.isfinite(expected)])
            np.testing.assert_allclose(actual, expected, rtol, rtol * float(finite.max(initial=0)), err_msg=f"{name}[{k}]")


def _same_bits(actual: Array, expected: Array) -> bool:
    if expected.dtype.kind == "O":
        return np.array_equal(actual, expected)
    if expected.dtype.kind == "V" or expected.dtype.kind == "f":
        same = actual.astype(np.float64), expected.astype(np.float64)
        return np.array_equal(*same, equal_nan=True)
    return np.array_equal(actual, expected)


def loops(graph: Graph) -> int:
    """Return how many nodes run one example after the other."""
    return sum(n.op == "Scan" and n.subgraphs["body"].name.startswith("each_") for _, n in graph.walk())


def rounding(case: Case) -> float:
    """Return the tolerance of the values of a case."""
    narrow = any(spec is not None and a is not None and a.dtype == np.float32
                 for spec, a in zip(case.inputs, case.arrays(), strict=True))
    return 0 if case.op not in PRODUCTS else 1e-5 if narrow else 1e-13


# ---- what is checked --------------------------------------------------------------------------------------------------------


def check_values(case: Case, how: str, symbolic: bool = False, count: int = 3) -> int | None:
    """Check the examples of a case; returns how many nodes run them one by one, None where nothing is to be checked."""
    examples, names = draws(case, max(count, 1)), [f"x{i}" for i in subset(case, how)]
    if examples is None or not names:
        return None
    many = stacked(examples, names)
    graph, _ = case.graph(case.arrays(), symbolic)
    batched = fg.vmap(Model(graph), dict.fromkeys(names, 0)).graph
    verify(batched)
    if not count:
        many = {name: a[:0] if name in names else a for name, a in many.items()}
    found = evaluate(batched, many)
    wanted = [evaluate(graph, one_of(stacked(examples, names), names, k)) for k in range(max(count, 1))]
    if not count:
        assert all(found[name].shape == (0, *y.shape) for name, y in wanted[0].items() if graph_is_static(graph))
        return loops(batched)
    agree(found, wanted, rounding(case))
    return loops(batched)


def graph_is_static(graph: Graph) -> bool:
    """Return whether all extents of the outputs are known before the run."""
    return all(y.type.is_static for y in graph.outputs)


def check_rows(case: Case, how: str = "all") -> None:
    """Check the examples of a case whose operands come from an operator that takes examples for more samples."""
    examples, names = draws(case, 3), [f"x{i}" for i in subset(case, how)]
    if examples is None or not names:
        return
    with scoped():
        @op("Sampled")
        def sampled(x: Array) -> Array:
            return x

        sampled.types(lambda node: node.input(0).type)
        sampled.batch(within_batch(0))
        plain, _ = case.graph(case.arrays())
        graph = plain.copy()
        for name in names:
            x = graph.value(name)
            if x.type.rank:
                y = Builder(graph).add("Sampled", [x])
                graph.replace_uses(x, y, only=lambda user, made=y.producer: user is not made)  # type: ignore[misc]
        batched = fg.vmap(Model(graph), dict.fromkeys(names, 0)).graph
        verify(batched)
        many = stacked(examples, names)
        found = evaluate(batched, many)
    agree(found, [evaluate(plain, one_of(many, names, k)) for k in range(3)], rounding(case))


def check_twice(case: Case) -> None:
    """Check examples of examples."""
    examples, names = draws(case, 4), [f"x{i}" for i in subset(case, "all")]
    if examples is None or not names:
        return
    graph, _ = case.graph(case.arrays())
    axes = dict.fromkeys(names, 0)
    twice = fg.vmap(fg.vmap(Model(graph), axes), axes).graph
    verify(twice)
    many = stacked(examples, names)
    found = evaluate(twice, {name: a.reshape(2, 2, *a.shape[1:]) if name in names else a for name, a in many.items()})
    flat = {name: a.reshape(4, *a.shape[2:]) for name, a in found.items()}
    agree(flat, [evaluate(graph, one_of(many, names, k)) for k in range(4)], rounding(case))


Derive = Callable[[Model, list[str]], Model]

DERIVATIVES: dict[str, Derive] = {
    "vjp": lambda model, wrt: fg.vjp(model, wrt=wrt),
    "jvp": lambda model, wrt: fg.jvp(model, wrt=wrt),
    "second": lambda model, wrt: fg.jvp(fg.vjp(model, wrt=wrt), wrt=wrt),
}


def check_derivative(case: Case, kind: str, how: str = "all") -> bool:
    """Check the examples of a derivative of a case; returns whether there is one."""
    model, wrt = _differentiable(case)
    derivative = _or_none(lambda: DERIVATIVES[kind](model, wrt)) if wrt else None
    examples = draws(case, 3)
    if derivative is None or examples is None or not _add_seeds(derivative, examples):
        return False
    names = [f"x{i}" for i in subset(case, how)] + [v.name for v in derivative.graph.inputs if v.name not in model.graph.values]
    batched = fg.vmap(derivative, dict.fromkeys(names, 0)).graph
    verify(batched)
    many = stacked(examples, names)
    found = evaluate(batched, many)
    agree(found, [evaluate(derivative.graph, one_of(many, names, k)) for k in range(3)], 1e-10)
    return True


def check_derivative_of_examples(case: Case) -> bool:
    """Check the vjp of the examples of a case; returns whether there is one."""
    model, wrt = _differentiable(case)
    one = _or_none(lambda: fg.vjp(model, wrt=wrt)) if wrt else None
    examples, names = draws(case, 3), [f"x{i}" for i in subset(case, "all")]
    if one is None or examples is None or any(name not in names for name in wrt) or not _add_seeds(one, examples):
        return False
    derivative = fg.vjp(fg.vmap(model, dict.fromkeys(names, 0)), wrt=wrt)
    verify(derivative.graph)
    names += [v.name for v in one.graph.inputs if v.name not in model.graph.values]
    many = stacked(examples, names)
    found = evaluate(derivative.graph, many)
    agree(found, [evaluate(one.graph, one_of(many, names, k)) for k in range(3)], 1e-10)
    return True


def check_engine(case: Case) -> bool:
    """Check the examples of a case as a program runs them; returns whether there is anything to check."""
    examples, names = draws(case, 3), [f"x{i}" for i in subset(case, "all")]
    if examples is None or not names:
        return False
    graph, _ = case.graph(case.arrays())
    many = stacked(examples, names)
    batched = fg.vmap(Model(graph), dict.fromkeys(names, 0))
    agree(batched(many), [Model(graph)(one_of(many, names, k)) for k in range(3)], 1e-12 if rounding(case) < 1e-6 else 1e-5)
    return True


def check_export(case: Case) -> bool:
    """Check the examples of a case in onnxruntime, against each in it; returns whether it runs one."""
    examples, names = draws(case, 3), [f"x{i}" for i in subset(case, "all")]
    if examples is None or not names:
        return False
    graph, _ = case.graph(case.arrays())
    batched = fg.vmap(Model(graph), dict.fromkeys(names, 0)).graph
    if loops(batched) and any(y.type.dtype.kind == "string" for y in graph.outputs):
        return False  # onnxruntime loses strings that a Loop stacks
    many = stacked(examples, names)
    try:
        wanted = [in_onnxruntime(graph, one_of(many, names, k)) for k in range(3)]
    except Exception:  # onnxruntime lacks operators and types, and has no class of its own for that
        return False
    found = in_onnxruntime(batched, many)
    agree(found, wanted, 1e-5)
    return True


def in_onnxruntime(graph: Graph, feeds: Feeds) -> dict[str, Array]:
    """Return the outputs of a graph that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(write_onnx(graph).SerializeToString(), options)
    return {o.name: np.asarray(y) for o, y in zip(session.get_outputs(), session.run(None, feeds), strict=True)}


def _differentiable(case: Case) -> tuple[Model, list[str]]:
    """Return the model of a case and the inputs to differentiate by."""
    graph, _ = case.graph(case.arrays())
    wrt = [f"x{i}" for i, spec in enumerate(case.inputs) if spec is not None and spec.differentiable and not spec.constant]
    return Model(graph), [name for name in wrt if graph.value(name).type.dtype.name == "float64"]


def _or_none(make: Callable[[], Model]) -> Model | None:
    try:
        return make()
    except (NotDifferentiableError, InputError):
        return None


def _add_seeds(derivative: Model, examples: Sequence[Feeds]) -> bool:
    """Add cotangents and tangents to the feeds of the examples; returns whether their shapes are known."""
    rng = np.random.default_rng(5)
    added = [v for v in derivative.graph.inputs if v.name not in examples[0]]
    if not all(v.type.is_static for v in added):
        return False
    for v in added:
        for feeds in examples:
            feeds[v.name] = rng.standard_normal(v.type.static_shape).astype(v.type.dtype.numpy)
    return True


# ---- the sweep --------------------------------------------------------------------------------------------------------------


def checks(case: Case) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the name of each check of a case, and the check."""
    for symbolic in (False, True) if case.symbolic else (False,):
        for how in SUBSETS:
            for count in (3, 1, 0):
                name = f"{how} {'symbolic' if symbolic else 'static'} {count}"
                yield name, partial(check_values, case, how, symbolic, count)
    for how in SUBSETS:
        yield f"rows {how}", partial(check_rows, case, how)
    yield "twice", partial(check_twice, case)
    for kind in DERIVATIVES:
        for how in SUBSETS:
            yield f"{kind} {how}", partial(check_derivative, case, kind, how)
    yield "vjp of examples", partial(check_derivative_of_examples, case)
    yield "engine", partial(check_engine, case)
    yield "onnxruntime", partial(check_export, case)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="")
    wanted = parser.parse_args(arguments).name
    warnings.simplefilter("ignore")
    counts: collections.Counter[str] = collections.Counter()
    for case in all_cases():
        for name, check in checks(case) if wanted in case.id else ():
            try:
                check()
                counts["right"] += 1
            except UnsupportedError:
                counts["refused"] += 1
            except Exception as error:  # whatever it is, the other cases are checked as well
                counts["wrong"] += 1
                print(f"{case.id}, {name}: {type(error).__name__}: {str(error)[:500]}", flush=True)
    print(dict(counts))
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
