"""``python -m flowgrad.tools.maintenance.exported``: gradient models of the cases that onnx ships, exported, in onnxruntime.

Every test case of the installed package ``onnx`` that can be differentiated: the model with the gradients of all float inputs
is exported, run as onnxruntime runs any file, in one thread and in four, and compared with the engine. What onnxruntime has
no kernels for is listed by operator and type, with the cases; exit code 1 if anything else differs or is refused.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.ir.errors import EngineError, FlowgradError, NotDifferentiableError, RunError, UnsupportedError
from flowgrad.ir.graph import Array
from flowgrad.ir.ops.registry import Trait, opdef
from flowgrad.model import Model, load
from flowgrad.tools.maintenance.fuzz_checks import ORT_LIMITS
from flowgrad.transforms.derivatives import vjp

THREADS = (1, 4)

TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}
"""Errors relative to the largest element of an array that sums in another order may have; none in narrower floats."""

FED_SCALES = "onnxruntime aligns corners by an extent rounded down, where scales are fed and export cannot write it out"
DISPUTED = {f"test_resize_downsample_scales_{mode}_align_corners": FED_SCALES for mode in ("linear", "cubic")}
"""Cases in which onnxruntime's own numbers are not those that onnx ships for them."""

PACKED = "can't be converted to MLDataType"
"""What onnxruntime's Python says of numbers of two or four bits, which it cannot be fed."""

LACKING = re.compile(r"Could not find an implementation for (\w+\(\d+\))")


@dataclass(frozen=True)
class Case:
    """A model and what is fed to it, in the order of its inputs (None: nothing is)."""

    name: str
    model: Any
    inputs: Sequence[Any]


@dataclass
class Seen:
    """Names of cases by what became of them, and what was wrong."""

    agreed: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: collections.defaultdict(list))
    lacking: dict[str, list[str]] = field(default_factory=lambda: collections.defaultdict(list))
    wrong: dict[str, str] = field(default_factory=dict)


# ---- cases ----------------------------------------------------------------------------------------------------------------


def cases(seed: int = 0) -> Iterator[Case]:
    """Yield the cases of single operators, their inputs drawn with other seeds if ``seed`` is not 0, and those of files."""
    yield from _drawn(seed)
    yield from _stored()


def _drawn(shift: int) -> Iterator[Case]:
    """The generator seeds NumPy with 0 before each case, as its modules are imported: with other numbers where asked."""
    own = np.random.seed

    def shifted(seed: Any = 0) -> None:
        own(seed + shift)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.random.seed = shifted
        try:
            from onnx.backend.test.case.node import collect_testcases

            found = collect_testcases(None)
        finally:
            np.random.seed = own
    for case in found:
        if case.model is not None and case.data_sets:
            yield Case(case.name, case.model, [_plain(v) for v in case.data_sets[0][0]])


def _stored() -> Iterator[Case]:
    import onnx
    import onnx.backend.test

    for suite in ("simple", "pytorch-converted", "pytorch-operator"):
        for folder in sorted((Path(onnx.backend.test.__file__).parent / "data" / suite).iterdir()):
            protos = sorted((folder / "test_data_set_0").glob("input_*.pb"), key=lambda p: int(p.stem[6:]))
            inputs = [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(p.read_bytes())) for p in protos]
            yield Case(folder.name, onnx.load(folder / "model.onnx"), inputs)


def _plain(value: Any) -> Any:
    """Return what a run takes for a value of a data set."""
    from onnx import TensorProto, numpy_helper

    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if value is None else np.asarray(value)


# ---- one case -------------------------------------------------------------------------------------------------------------


def examine(case: Case, seen: Seen) -> None:
    """Compare the exported gradient model of a case with the engine, and note what became of it."""
    prepared = DISPUTED.get(case.name) or _prepared(case)
    if isinstance(prepared, str):
        seen.left_out[prepared].append(case.name)
        return
    joint, feeds = prepared
    expected = dict(joint(feeds))
    for threads in THREADS:
        try:
            got = joint.compile(engine="ort", threads=threads).run(feeds)
        except (EngineError, RunError) as error:
            reason = _limit(str(error))
            if reason is None:
                seen.wrong[case.name] = str(error)
            else:
                seen.lacking[reason].append(case.name)
            return
        for name, array in expected.items():
            difference = compared(got[name], array)
            if difference:
                seen.wrong[case.name] = f"{name}, {threads} threads: {difference}"
                return
    seen.agreed.append(case.name)


def _prepared(case: Case) -> tuple[Model, dict[str, Any]] | str:
    """Return the model with its gradients and what to feed, or why there is none."""
    try:
        model = load(case.model)
    except UnsupportedError:
        return "not read"
    if any(Trait.RANDOM in opdef(n.op).traits and (n.op != "Dropout" or len(n.inputs) > 2) for _, n in model.graph.walk()):
        return "random"
    fixed = {i.name for i in case.model.graph.initializer}
    names = [i.name for i in case.model.graph.input if i.name not in fixed]
    known = {v.name: v for v in model.graph.inputs}
    feeds = {n: x for n, x in zip(names, case.inputs, strict=True) if n in known and x is not None}
    wrt = [n for n in feeds if known[n].type.dtype.is_float]
    of = [v.name for v in model.graph.output_entries if v.input(0).type.dtype.is_float]
    if not wrt or not of:
        return "no floats in, or none out"
    try:
        joint = vjp(model, of, wrt, zero="allow")
    except NotDifferentiableError:
        return "refused"
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    outputs = model(feeds)
    for (role, y, _), name in joint.roles.items():
        if role == "cotangent":
            feeds[name] = np.asarray(rng.standard_normal(outputs[y].shape)).astype(outputs[y].dtype)
    return joint, feeds


def _limit(message: str) -> str | None:
    """Return what onnxruntime lacks by its message, None where it does not say that it lacks anything."""
    lacking = LACKING.search(message)
    if PACKED in message:
        return "no numbers of two or four bits in Python"
    if lacking:
        return f"no kernel for {lacking[1]} in this type"
    return next((why for part, why in ORT_LIMITS if part in message), None)


def compared(got: Array, expected: Array) -> str:
    """Return in what two arrays differ, or an empty string."""
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return f"{got.dtype}{list(got.shape)}, not {expected.dtype}{list(expected.shape)}"
    if "float" not in expected.dtype.name:
        return "" if np.array_equal(got, expected) else f"{got}, not {expected}"
    mine, theirs = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(mine)
    if not np.array_equal(mine[~finite], theirs[~finite], equal_nan=True):
        return f"{got}, not {expected}"
    error = np.abs(mine[finite] - theirs[finite]).max(initial=0.0)
    most = TOLERANCES.get(expected.dtype.name, 0.0) * max(1.0, float(np.abs(mine[finite]).max(initial=0.0)))
    return "" if error <= most else f"an error of {error:.3g}, above {most:.3g}"


# ---- the command ----------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    parser = argparse.ArgumentParser(prog="exported", description=(__doc__ or "").split(":", 1)[1].strip())
    parser.add_argument("--seed", type=int, default=0, help="draw the inputs of single operators with other seeds")
    parser.add_argument("--filter", default="", help="only cases whose name this regular expression finds")
    given = parser.parse_args(argv)
    seen = Seen()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for case in cases(given.seed):
            if not re.search(given.filter, case.name):
                continue
            try:
                examine(case, seen)
            except FlowgradError as error:
                seen.wrong[case.name] = f"{type(error).__name__}: {error}"
    report(seen)
    return int(bool(seen.wrong))


def report(seen: Seen) -> None:
    """Say what became of the cases."""
    for name, what in sorted(seen.wrong.items()):
        print(f"wrong: {name}: {what}")
    for what, groups in (("onnxruntime", seen.lacking), ("not compared", seen.left_out)):
        for reason, names in sorted(groups.items()):
            print(f"{what}: {reason}: {len(names)}: {', '.join(sorted(names))}")
    count = sum(map(len, seen.lacking.values()))
    print(f"{len(seen.agreed)} gradient models agree in {' and '.join(map(str, THREADS))} threads, {len(seen.wrong)} do not; "
          f"onnxruntime lacks kernels for {count}; {sum(map(len, seen.left_out.values()))} cases have none")


if __name__ == "__main__":
    sys.exit(main())
