"""``python -m flowgrad.tools.maintenance.races``: exported derivatives that add up, again and again in threads of onnxruntime.

Every derivative here adds many cotangents to few elements. The numbers are small integers, so that sums are exact in any
order: a result that differs in one bit from the engine's has lost an update. The second table runs single operators as
onnxruntime has them, on real numbers, and says which of them do not give the same bits every time. Exit code 1 if an
exported derivative was wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Array, Graph, Value
from flowgrad.ir.types import FLOAT32, INT64, Type
from flowgrad.model import Model
from flowgrad.transforms.derivatives import vjp

if TYPE_CHECKING:
    from onnx import ModelProto

THREADS = (2, 4)
RUNS = 100
Feeds = dict[str, Array]
Formula = Callable[[Builder, Value, Value], Value]

# ---- derivatives that add up ----------------------------------------------------------------------------------------------


def _few(size: int, extent: int = 3) -> Array:
    return np.random.default_rng(1).integers(0, extent, size)


def _scattered(op: str, reduction: str) -> Formula:
    def formula(b: Builder, x: Value, indices: Value) -> Value:
        base = b.Slice(x, [0], [4], [0])
        if op == "ScatterND":
            return b.ScatterND(base, b.Unsqueeze(indices, [1]), x, reduction=reduction)
        places = b.Expand(b.Unsqueeze(indices, [1]), b.shape(x))
        return b.ScatterElements(base, places, x, axis=0, reduction=reduction)

    return formula


def _window(op: str, **attributes: Any) -> Formula:
    def formula(b: Builder, x: Value, indices: Value) -> Value:
        image = b.Reshape(x, [1, -1, 64, 64])
        return b.add(op, [image], {"kernel_shape": [5, 5], **attributes})

    return formula


def _resized(mode: str) -> Formula:
    def formula(b: Builder, x: Value, indices: Value) -> Value:
        return b.Resize(b.Reshape(x, [1, -1, 64, 64]), None, np.array([1, 1, 4, 4], np.float32), mode=mode,
                        nearest_mode="floor", coordinate_transformation_mode="asymmetric")

    return formula


FORMULAS: dict[str, Formula] = {
    "Gather": lambda b, x, i: b.Gather(x, i),
    "Gather of one row": lambda b, x, i: b.Gather(b.Slice(x, [0], [1], [0]), b.Mul(i, np.int64(0))),
    "Gather along the last axis": lambda b, x, i: b.Gather(b.Transpose(x, perm=[1, 0]), i, axis=1),
    "Gather twice": lambda b, x, i: b.Add(b.Gather(x, i), b.Gather(x, b.Sub(i, np.int64(3)))),
    "GatherElements": lambda b, x, i: b.GatherElements(x, b.Expand(b.Unsqueeze(i, [1]), b.shape(x)), axis=0),
    "GatherND": lambda b, x, i: b.GatherND(x, b.Unsqueeze(i, [1])),
    "GatherND of elements": lambda b, x, i: b.GatherND(x, b.Concat(*[b.Unsqueeze(i, [1])] * 2, axis=1)),
    "Slice": lambda b, x, i: b.Concat(*(b.Slice(x, [k], [-9], [0], [1 + k % 2]) for k in range(9)), axis=0),
    "ScatterElements add": _scattered("ScatterElements", "add"),
    "ScatterElements max": _scattered("ScatterElements", "max"),
    "ScatterND add": _scattered("ScatterND", "add"),
    "ScatterND min": _scattered("ScatterND", "min"),
    "MaxPool": _window("MaxPool"),
    "AveragePool": _window("AveragePool", count_include_pad=1),
    "LpPool": _window("LpPool", p=1),
    "Resize nearest": _resized("nearest"),
    "Resize linear": _resized("linear"),
    "Tile": lambda b, x, i: b.Tile(b.Slice(x, [0], [64], [0]), [256, 1]),
    "Expand": lambda b, x, i: b.Mul(x, b.Slice(x, [0], [1], [0])),
    "Pad wrap": lambda b, x, i: b.Pad(b.Slice(x, [0], [9000], [0]), [9000, 0, 9000, 0], mode="wrap"),
    "Compress": lambda b, x, i: b.Compress(x, b.Greater(i, np.int64(0)), axis=0),
    "TopK": lambda b, x, i: b.add_several("TopK", [x, [2]], outputs=2)[0],
    "ReduceMax": lambda b, x, i: b.ReduceMax(x, [0]),
}
"""What is differentiated: a function of x and of indices that repeat."""

ROWS, WIDTH = 65_536, 8


def accumulating(rows: int = ROWS) -> Iterator[tuple[str, Model, Feeds]]:
    """Yield (name, derivative, feeds) of every formula, over x of ``rows`` x 8 elements."""
    rng = np.random.default_rng(0)
    for name, formula in FORMULAS.items():
        graph = Graph("adds")
        x, i = graph.add_input("x", Type(FLOAT32, (rows, WIDTH))), graph.add_input("i", Type(INT64, (rows,)))
        graph.add_output(formula(Builder(graph), x, i), "y")
        model = Model(graph)
        feeds: Feeds = {"x": np.asarray(rng.integers(-3, 4, (rows, WIDTH)), np.float32), "i": _few(rows)}
        y_grad = np.asarray(rng.integers(0, 3, model(feeds)["y"].shape), np.float32)
        yield name, vjp(model, of="y", wrt="x"), {**feeds, "y_grad": y_grad}


def lost(model: Model, feeds: Mapping[str, Array], threads: int, runs: int) -> int:
    """Return how many of ``runs`` in onnxruntime give another gradient of x than the engine."""
    used = {value.name for value in model.inputs}
    expected = model(feeds)["x_grad"]
    run = session(model.to_onnx(), threads)
    given = {name: array for name, array in feeds.items() if name in used}
    return sum(not np.array_equal(run(given)["x_grad"], expected) for _ in range(runs))


def session(model: ModelProto, threads: int) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Return a function that runs ``model`` in onnxruntime in so many threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in made.get_outputs()]
    return lambda feeds: dict(zip(names, made.run(None, dict(feeds)), strict=True))


# ---- operators as the runtime has them ------------------------------------------------------------------------------------


def _single(op: str, inputs: Mapping[str, Array], **attributes: Any) -> tuple[ModelProto, Feeds]:
    from onnx import TensorProto, helper

    def info(name: str, array: Array) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    node = helper.make_node(op, list(inputs), ["y"], **attributes)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], op, [info(n, a) for n, a in inputs.items()], [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), dict(inputs)


def operators() -> Iterator[tuple[str, ModelProto, Feeds]]:
    """Yield (name, model, feeds) of single operators that add up in threads, on real numbers."""
    rng = np.random.default_rng(2)

    def real(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    place = np.zeros((400_000, 1), np.int64)
    for reduction in ("add", "mul", "max", "min"):
        update = 1 + real(400_000, 4) / 1000
        yield f"ScatterND {reduction}", *_single("ScatterND", {"x": real(1, 4), "i": place, "u": update}, reduction=reduction)
        wide = {"x": real(1, 4), "i": np.broadcast_to(place, update.shape).copy(), "u": update}
        yield f"ScatterElements {reduction}", *_single("ScatterElements", wide, reduction=reduction)
    big, axes = real(512, 2048), np.array([0])
    for op in ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL2", "ReduceLogSumExp", "ReduceMax"):
        yield op, *_single(op, {"x": big, "a": axes})
        yield f"{op} of all", *_single(op, {"x": big})
    image = real(2, 16, 64, 64)
    yield "MatMul", *_single("MatMul", {"a": big, "b": real(2048, 300)})
    yield "Conv", *_single("Conv", {"x": image, "w": real(32, 16, 3, 3)})
    yield "ConvTranspose", *_single("ConvTranspose", {"x": image, "w": real(16, 32, 3, 3)}, strides=[2, 2])
    yield "Col2Im", *_single("Col2Im", {"x": real(2, 144, 3844), "s": np.array([64, 64]), "k": np.array([3, 3])})
    yield "AveragePool", *_single("AveragePool", {"x": image}, kernel_shape=[3, 3])
    yield "GlobalAveragePool", *_single("GlobalAveragePool", {"x": image})
    yield "CumSum", *_single("CumSum", {"x": big, "axis": np.array(0)})
    yield "Softmax", *_single("Softmax", {"x": big})
    yield "LayerNormalization", *_single("LayerNormalization", {"x": big, "s": real(2048)})
    yield "InstanceNormalization", *_single("InstanceNormalization", {"x": image, "s": real(16), "b": real(16)})
    yield "GridSample", *_single("GridSample", {"x": image, "g": np.tanh(real(2, 64, 64, 2))})


def differing(model: ModelProto, feeds: Feeds, threads: int, runs: int) -> int:
    """Return how many of ``runs`` give other bits than the first."""
    run = session(model, threads)
    first = run(feeds)["y"].tobytes()
    return sum(run(feeds)["y"].tobytes() != first for _ in range(runs - 1))


# ---- the command ------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the module."""
    parser = argparse.ArgumentParser(prog="races", description=(__doc__ or "").split(":", 1)[1].strip())
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs of each model and number of threads ({RUNS})")
    runs = parser.parse_args(argv).runs
    heads = "".join(f"{t:>4} threads" for t in THREADS)
    print(f"{f'derivative: wrong of {runs} runs':46s}{heads}")
    wrong = 0
    for name, model, feeds in accumulating():
        counts = [lost(model, feeds, threads, runs) for threads in THREADS]
        wrong += sum(counts)
        print(f"{name:46s}{''.join(f'{c:12d}' for c in counts)}", flush=True)
    print(f"\n{f'operator of onnxruntime: other bits, of {runs} runs':46s}{heads}")
    for name, proto, feeds in operators():
        counts = [differing(proto, feeds, threads, runs) for threads in THREADS]
        print(f"{name:46s}{''.join(f'{c:12d}' for c in counts)}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
