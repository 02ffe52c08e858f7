"""What operators compute, by the ONNX standard, in PyTorch: the table, elementwise functions, reductions and products.

Nothing here uses the product's kernels, rules or defaults: attributes that a node leaves out are those of ``onnx.defs``.
Floats are computed in float64 whatever their declared type is.
"""

from __future__ import annotations

import collections
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch

from flowgrad.ir.graph import INPUT, Graph, Node, Value
from flowgrad.ir.types import FLOAT32, FLOAT64, dtype_of
from flowgrad.tools.maintenance.random_functions import WAS

Tensor = Any
"""A torch tensor; torch is not there where types are checked."""

Mirror = Callable[..., Any]
"""A function of a call and its operands (None for an absent one) that returns one tensor or one for each output."""

MIRRORS: dict[str, Mirror] = {}
"""The operators that can be compared."""


class NoMirror(Exception):
    """A form of an operator that is not written in PyTorch: the reason."""


@dataclass
class Run:
    """One run of a graph in PyTorch, and where it came nearer than ``tiny`` to a step, or to what has no derivative.

    With ``tiny`` 0 it does not look, which a run under torch.func.vmap cannot.
    """

    tiny: float
    ops: set[str] = field(default_factory=set)
    steps: collections.Counter[str] = field(default_factory=collections.Counter)
    kinks: collections.Counter[str] = field(default_factory=collections.Counter)


@dataclass
class Call:
    """A node that is about to be computed: its attributes, and what it tells the run."""

    node: Node
    run: Run
    attributes: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.attributes[name]

    @property
    def count(self) -> int:
        """The number of outputs that the node lists."""
        return len(self.node.outputs)

    def step(self, distance: Tensor, exact: bool = True) -> None:
        """Note how far operands are from where the value jumps; ``exact``: at distance 0 all engines are on the same side."""
        near = distance.detach().abs()
        if self.run.tiny and bool(((near < self.run.tiny) & ((near > 0) | (not exact))).any()):
            self.run.steps[self.node.op] += 1

    def kink(self, distance: Tensor, agreed: bool = False) -> None:
        """Note how far operands are from where a derivative jumps; ``agreed``: at distance 0 it is what PyTorch says."""
        near = distance.detach().abs()
        if self.run.tiny and bool(((near < self.run.tiny) & ((near > 0) | (not agreed))).any()):
            self.run.kinks[self.node.op] += 1


def mirror(*ops: str) -> Callable[[Mirror], Mirror]:
    """Declare what operators compute."""

    def declare(function: Mirror) -> Mirror:
        for op in ops:
            MIRRORS[op] = function
        return function

    return declare


@functools.cache
def defaults(op: str) -> dict[str, Any]:
    """Return the attributes of an operator of the standard with their default values (None where there is none)."""
    if not onnx.defs.has(op):
        return {}
    schema = onnx.defs.get_schema(op, 28)
    found = {}
    for name, attribute in schema.attributes.items():
        value = onnx.helper.get_attribute_value(attribute.default_value) if attribute.default_value.name else None
        found[name] = value.decode() if isinstance(value, bytes) else value
        if isinstance(value, list):
            found[name] = [v.decode() if isinstance(v, bytes) else v for v in value]
    return found


def run_graph(graph: Graph, inputs: Sequence[Tensor], run: Run, held: dict[Value, Tensor] | None = None) -> list[Tensor]:
    """Return the outputs of a graph; ``held`` stands in for constants."""
    known: dict[Value, Tensor] = dict(zip(graph.inputs, inputs, strict=True)) | (held or {})
    for value in graph.constants:
        if value not in known:
            known[value] = tensor(value.producer.data)
    for node in _needed(graph):
        function = function_of(graph, node)
        if function is not None:
            told, operands = function
            run.ops.add(told["op"])
            call = Call(node, run, defaults(told["op"]) | told["attributes"])
            made = MIRRORS[told["op"]](call, *(None if v is None else known[v] for v in operands))
            known[graph.value(told["result"])] = made[told["index"]] if isinstance(made, list) else made
            continue
        if node.op not in MIRRORS:
            raise NoMirror(node.op)
        run.ops.add(node.op)
        call = Call(node, run, defaults(node.op) | node.attributes)
        more = {"captured": [known[v] for v in node.captures]} if node.subgraphs else {}
        results = MIRRORS[node.op](call, *(None if v is None else known[v] for v in node.inputs), **more)
        for output, result in zip(node.outputs, results if isinstance(results, (tuple, list)) else [results], strict=False):
            if output is not None:
                known[output] = result
    return [known[v] for v in graph.outputs]


def function_of(graph: Graph, node: Node) -> tuple[dict[str, Any], list[Value | None]] | None:
    """Return what a node says it is the result of, and on which values, as long as all of those are there."""
    told = json.loads(node.metadata.get(WAS, "{}"))
    if not told or told["result"] not in graph.values or any(n and n not in graph.values for n in told["inputs"]):
        return None
    operands: list[Value | None] = [graph.value(n) if n else None for n in told["inputs"]]
    left: list[Value] = [graph.value(told["result"])]
    seen = {v for v in operands if v is not None}
    while left:  # shrinking feeds inner values: then it is that operator no more
        producer = left.pop().producer
        if producer.op == INPUT:
            return None
        left += [v for v in producer.operands if v not in seen]
        seen.update(producer.operands)
    return told, operands


def _needed(graph: Graph) -> list[Node]:
    """Return the nodes that the outputs need, those inside of functions left out."""
    wanted, found = set(graph.outputs), []
    for node in reversed(graph.nodes()):
        if wanted.intersection(node.results):
            found.append(node)
            function = function_of(graph, node)
            wanted.update(node.operands if function is None else (v for v in function[1] if v is not None))
    return found[::-1]


def tensor(array: Any) -> Tensor:
    """Return an array as a tensor, floats as float64: converted before it is one, so that no operation rounds it."""
    return torch.from_numpy(np.asarray(array).astype("float64" if array.dtype.kind == "f" else array.dtype))


def torch_type(number: int) -> Any:
    """Return the torch type of an ONNX type number; float64 for every float."""
    found = dtype_of(number)
    return torch.float64 if found.is_float else getattr(torch, found.name)


def gap(x: Tensor, axis: int) -> Tensor:
    """Return the distances between neighbours in order of size."""
    ordered = x.detach().sort(dim=axis).values
    return ordered.diff(dim=axis) if x.numel() else x.new_ones(1)


# ---- elementwise --------------------------------------------------------------------------------------------------------

PLAIN: dict[str, Callable[..., Tensor]] = {
    "Identity": lambda x: x.clone(), "StopGradient": lambda x: x.detach(), "Neg": torch.neg, "Exp": torch.exp,
    "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Sin": torch.sin, "Cos": torch.cos,
    "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh,
    "Tanh": torch.tanh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh, "Erf": torch.erf,
    "Sigmoid": torch.sigmoid, "Softplus": lambda x: softplus(x), "Mish": lambda x: x * torch.tanh(softplus(x)),
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "IsNaN": torch.isnan, "Not": torch.logical_not,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor, "BitwiseNot": torch.bitwise_not,
    "Where": torch.where,
}
"""Functions that have no attributes and are smooth, or as PyTorch has them."""

for _op, _function in PLAIN.items():
    MIRRORS[_op] = lambda call, *operands, function=_function: function(*operands)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x)."""
    return torch.logaddexp(x, torch.zeros_like(x))


@mirror("Softsign")
def _softsign(c: Call, x: Tensor) -> Tensor:
    c.kink(x)
    return x / (1 + x.abs())


@mirror("Abs")
def _abs(c: Call, x: Tensor) -> Tensor:
    c.kink(x, agreed=True)
    return x.abs()


@mirror("Relu")
def _relu(c: Call, x: Tensor) -> Tensor:
    c.kink(x, agreed=True)
    return torch.relu(x)


@mirror("LeakyRelu")
def _leaky_relu(c: Call, x: Tensor) -> Tensor:
    c.kink(x)
    return torch.where(x < 0, c.alpha * x, x)


@mirror("PRelu")
def _prelu(c: Call, x: Tensor, slope: Tensor) -> Tensor:
    c.kink(x)
    return torch.where(x < 0, slope * x, x)


def _below(x: Tensor) -> Tensor:
    """Return x where it is negative, else 0: no overflow on the side that is not chosen."""
    return torch.where(x > 0, torch.zeros_like(x), x)


@mirror("Elu")
def _elu(c: Call, x: Tensor) -> Tensor:
    c.kink(x)
    return torch.where(x > 0, x, c.alpha * torch.expm1(_below(x)))


@mirror("Celu")
def _celu(c: Call, x: Tensor) -> Tensor:
    c.kink(x)
    return torch.where(x > 0, x, c.alpha * torch.expm1(_below(x) / c.alpha))


@mirror("Selu")
def _selu(c: Call, x: Tensor) -> Tensor:
    c.kink(x)
    return c.gamma * torch.where(x > 0, x, c.alpha * torch.expm1(_below(x)))


@mirror("Gelu")
def _gelu(c: Call, x: Tensor) -> Tensor:
    if c.approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


@mirror("HardSigmoid")
def _hard_sigmoid(c: Call, x: Tensor) -> Tensor:
    y = c.alpha * x + c.beta
    c.kink(y)
    c.kink(y - 1)
    return y.clamp(0, 1)


@mirror("HardSwish")
def _hard_swish(c: Call, x: Tensor) -> Tensor:
    c.kink(x.abs() - 3)
    return x * (x / 6 + 0.5).clamp(0, 1)


@mirror("Swish")
def _swish(c: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(c.alpha * x)


@mirror("SwiGLU")
def _swiglu(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return a * torch.sigmoid(c.alpha * a) * b


@mirror("Shrink")
def _shrink(c: Call, x: Tensor) -> Tensor:
    c.step(x.abs() - c.lambd)
    return torch.where(x < -c.lambd, x + c.bias, torch.where(x > c.lambd, x - c.bias, torch.zeros_like(x)))


@mirror("ThresholdedRelu")
def _thresholded_relu(c: Call, x: Tensor) -> Tensor:
    c.step(x - c.alpha)
    return torch.where(x > c.alpha, x, torch.zeros_like(x))


@mirror("Clip")
def _clip(c: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    for bound in (low, high):
        if bound is not None:
            c.kink(x - bound)
    x = x if low is None else torch.where(x < low, low, x)
    return x if high is None else torch.where(x > high, high, x)


@mirror("Floor", "Ceil")
def _floor(c: Call, x: Tensor) -> Tensor:
    c.step(x - x.round())
    return torch.floor(x) if c.node.op == "Floor" else torch.ceil(x)


@mirror("Round")
def _round(c: Call, x: Tensor) -> Tensor:
    c.step(x - x.floor() - 0.5)
    return torch.round(x)


@mirror("Sign")
def _sign(c: Call, x: Tensor) -> Tensor:
    c.step(x)
    return torch.sign(x)


@mirror("Div")
def _div(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@mirror("Mod")
def _mod(c: Call, a: Tensor, b: Tensor) -> Tensor:
    if not a.is_floating_point():
        return torch.fmod(a, b) if c.fmod else torch.remainder(a, b)
    ratio = (a / b).detach()
    c.step(ratio - ratio.round())
    return a - torch.trunc(ratio) * b


@mirror("Pow")
def _pow(c: Call, x: Tensor, y: Tensor) -> Tensor:
    whole = y.dtype == torch.int64 or bool(((y == y.round()) & (y >= 0)).all() and not y.requires_grad)
    if not whole:
        c.kink(x)
    return torch.pow(x, y.to(x.dtype))


@mirror("Max", "Min", "Sum", "Mean")
def _variadic(c: Call, *operands: Tensor) -> Tensor:
    op = c.node.op
    stacked = torch.stack(torch.broadcast_tensors(*operands))
    if op in ("Sum", "Mean"):
        return stacked.sum(0) if op == "Sum" else stacked.sum(0) / len(operands)
    return _extremum(c, stacked, [0], False, op)


def _extremum(c: Call, x: Tensor, axes: list[int], keep: bool, op: str) -> Tensor:
    """The largest or smallest entries; equal ones share the derivative."""
    if x.dtype == torch.bool:
        return _extremum(c, x.to(torch.int8), axes, keep, op).bool()
    if not x.numel():
        return x.sum(axes, keepdim=keep)  # which has no elements either: there is no largest of none
    picked = torch.amax if "Max" in op else torch.amin
    if x.is_floating_point():
        c.kink(x - picked(x, axes, keepdim=True), agreed=True)
    return picked(x, axes, keepdim=keep)


# ---- logic, types -------------------------------------------------------------------------------------------------------


@mirror("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
def _compare(c: Call, a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        c.step(a - b)
    return {"Equal": torch.eq, "Less": torch.lt, "LessOrEqual": torch.le, "Greater": torch.gt, "GreaterOrEqual": torch.ge}[
        c.node.op](a, b)


@mirror("IsInf")
def _is_inf(c: Call, x: Tensor) -> Tensor:
    return (torch.isposinf(x) & bool(c.detect_positive)) | (torch.isneginf(x) & bool(c.detect_negative))


@mirror("BitShift")
def _bit_shift(c: Call, x: Tensor, y: Tensor) -> Tensor:
    return x << y if c.direction == "LEFT" else x >> y


@mirror("Cast")
def _cast(c: Call, x: Tensor) -> Tensor:
    return _converted(c, x, torch_type(c.to))


@mirror("CastLike")
def _cast_like(c: Call, x: Tensor, like: Tensor) -> Tensor:
    return _converted(c, x, like.dtype)


def _converted(c: Call, x: Tensor, kind: Any) -> Tensor:
    if x.is_floating_point() and kind == torch.bool:
        c.step(x)
    elif x.is_floating_point() and not kind.is_floating_point:
        c.step(x - x.round())
    elif c.node.output().type.dtype == FLOAT32 and c.node.input(0).type.dtype == FLOAT64:
        return x.float().double()  # what rounds here rounds alike everywhere: a step may look at it
    return x.to(kind)


# ---- places of extrema ----------------------------------------------------------------------------------------------------


def _first(x: Tensor, axis: int, largest: bool, last: bool = False) -> Tensor:
    """Return the place of the extremum along an axis, kept with extent 1: the first or the last of equals."""
    hit = x == (torch.amax if largest else torch.amin)(x, axis, keepdim=True)
    places = torch.arange(x.shape[axis]).reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])
    if last:
        return torch.where(hit, places, -1).amax(axis, keepdim=True)
    return torch.where(hit, places, x.shape[axis]).amin(axis, keepdim=True)


@mirror("ArgMax", "ArgMin")
def _arg(c: Call, x: Tensor) -> Tensor:
    c.step(gap(x, c.axis))
    place = _first(x, c.axis, c.node.op == "ArgMax", bool(c.select_last_index))
    return place if c.keepdims else place.squeeze(c.axis)


@mirror("Hardmax")
def _hardmax(c: Call, x: Tensor) -> Tensor:
    c.step(gap(x, c.axis))
    return torch.zeros_like(x).scatter(c.axis, _first(x, c.axis, True), 1.0) if x.numel() else torch.zeros_like(x)


@mirror("TopK")
def _top(c: Call, x: Tensor, k: Tensor) -> list[Tensor]:
    c.step(gap(x, c.axis))
    places = x.detach().sort(dim=c.axis, descending=bool(c.largest), stable=True).indices.narrow(c.axis, 0, int(k))
    return [x.gather(c.axis, places), places]


# ---- reductions -----------------------------------------------------------------------------------------------------------


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


@mirror("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
        "ReduceLogSumExp", "ReduceProd")
def _reduce(c: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    op, keep = c.node.op, bool(c.keepdims)
    over = [] if axes is None else axes.tolist()
    over = over if over or c.noop_with_empty_axes else list(range(x.ndim))
    if op in ("ReduceMax", "ReduceMin"):
        return _extremum(c, x, over, keep, op) if over else x
    if op == "ReduceProd":
        return _product(x, over, keep)
    if op == "ReduceMean":
        return x.mean(over, keepdim=keep) if over else x
    if op == "ReduceLogSumExp":
        return torch.logsumexp(x, over, keepdim=keep) if over else x
    if op == "ReduceL1":
        c.kink(x, agreed=True)
    terms = x if op in ("ReduceSum", "ReduceLogSum") else x.abs() if op == "ReduceL1" else x * x
    total = terms.sum(over, keepdim=keep) if over else terms
    if op == "ReduceL2":
        c.kink(total)
        return torch.sqrt(total)
    return torch.log(total) if op == "ReduceLogSum" else total


@mirror("CumSum", "CumProd")
def _cumulative(c: Call, x: Tensor, axis: Tensor) -> Tensor:
    at = int(axis)
    x = x.flip(at) if c.reverse else x
    if c.exclusive and x.shape[at]:
        first = torch.zeros_like(x.narrow(at, 0, 1)) + (c.node.op == "CumProd")
        x = torch.cat([first, x.narrow(at, 0, x.shape[at] - 1)], at)
    y = torch.cumsum(x, at, dtype=x.dtype) if c.node.op == "CumSum" else torch.cumprod(x, at, dtype=x.dtype)
    return y.flip(at) if c.reverse else y


@mirror("Softmax", "LogSoftmax")
def _softmax(c: Call, x: Tensor) -> Tensor:
    return (torch.softmax if c.node.op == "Softmax" else torch.log_softmax)(x, c.axis)


# ---- products -------------------------------------------------------------------------------------------------------------


@mirror("MatMul")
def _matmul(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@mirror("Gemm")
def _gemm(c: Call, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    y = c.alpha * ((a.T if c.transA else a) @ (b.T if c.transB else b))
    return y if bias is None else y + c.beta * bias


@mirror("Einsum")
def _einsum(c: Call, *operands: Tensor) -> Tensor:
    return torch.einsum(c.equation, *operands)
