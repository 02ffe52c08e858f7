"""The transform with_loss: a model gains the error that its output makes against a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, suggestion
from flowgrad.ir.graph import INITIALIZER, Array, Graph, Value
from flowgrad.ir.inline import inline
from flowgrad.ir.ops.operands import permuted
from flowgrad.ir.types import INT64, UNKNOWN, Type, merge_types
from flowgrad.model import Model
from flowgrad.passes.selection import add_named_input, find_input, find_value, only_float_output
from flowgrad.transforms.ctc import ctc_of_each
from flowgrad.transforms.logits import squashed

Reduction = Literal["mean", "sum", "none"]
Labels = Literal["indices", "probabilities"]


@dataclass(frozen=True)
class Options:
    """What losses can be told; each says which of these it takes. Defaults mean: not told."""

    weights: Any = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    labels: Labels = "indices"
    axis: int | None = None
    delta: float = 1.0
    variance: str | None = None
    blank: int = 0
    lengths: tuple[str, str] = ("input_lengths", "target_lengths")
    reduction: Reduction = "mean"


Rule = Callable[[Builder, Value, Value, Options], Value]
"""``rule(b, y, t, options)``: the loss of each element or example, or a scalar that is reduced already."""


@dataclass(frozen=True)
class Loss:
    """A loss by name: its rule, the options it takes, what its output must not be made by, and the type of its target."""

    rule: Rule
    takes: tuple[str, ...] = ()
    inverse: tuple[str, ...] = ()
    target: Callable[[Value, Options], Type] = lambda y, options: y.type


LOSSES: dict[str, Loss] = {}


def _loss(name: str, *takes: str, inverse: Sequence[str] = (), target: Callable[[Value, Options], Type] | None = None
          ) -> Callable[[Rule], Rule]:
    def declare(rule: Rule) -> Rule:
        LOSSES[name] = Loss(rule, takes, tuple(inverse)) if target is None else Loss(rule, takes, tuple(inverse), target)
        return rule

    return declare


def with_loss(
    model: Model, loss: str | Model, output: str | None = None, target: str = "target", *, reduction: Reduction = "mean",
    name: str = "loss", weights: Any = None, ignore_index: int | None = None, label_smoothing: float = 0.0,
    labels: Labels = "indices", axis: int | None = None, delta: float = 1.0, variance: str | None = None,
    blank: int = 0, lengths: tuple[str, str] = ("input_lengths", "target_lengths"),
) -> Model:
    """Return ``model`` with one more output, ``name``: the loss of ``output`` against the new input ``target``.

    With y the output (default: the only float one; an inner value, such as logits, can be named) and t the target, of the
    type of y unless it says otherwise:

    * ``sum_of_squares``: E_n = 1/2 sum (y - t)^2 for each example n (axis 0);
    * ``mean_squared_error``: (y - t)^2; ``mean_absolute_error``: |y - t|;
    * ``huber``: (y - t)^2 / 2 up to ``delta``, delta (|y - t| - delta / 2) beyond;
    * ``hinge``: max(0, 1 - t y), t = -1 or 1;
    * ``sigmoid_cross_entropy``: softplus(y) - t y; ``weights`` multiply what positive targets cost;
    * ``softmax_cross_entropy``: -log softmax(y)[t] along ``axis`` (1, or 0 of a vector), t int64 without that axis or, with
      ``labels="probabilities"``, like y; ``weights`` per class, ``ignore_index``, ``label_smoothing``;
    * ``kl_divergence``: sum t (log t - log softmax(y)) along ``axis``;
    * ``poisson``: exp(y) - t y; ``gaussian``: (log v + (y - t)^2 / v) / 2 with v the output called ``variance``;
    * ``ctc`` (connectionist temporal classification): -log of the probability of all alignments of t [N, S], int64, with
      softmax(y) [T, N, C], class ``blank`` standing for no label; ``lengths`` names the inputs [N] that say how many steps and labels
      of each example count. The mean divides the loss of each example by the number of its labels, as PyTorch does.

    ``reduction`` averages ("mean"; weighted losses by the weights used), adds up ("sum"), or leaves ("none") these. ``loss``
    may be a Model as well: its first input gets y, the others become inputs, its only output is the loss. Weights are an
    array, or the name of an input. Raises InputError for unknown names and options, and where y went through the softmax
    or sigmoid that the loss applies itself: the error names the logits.

    Examples:
        >>> lossy = fg.with_loss(model, "softmax_cross_entropy", output="logits", target="label", name="error")
        >>> fg.grad(lossy, of="error", wrt="x")(batch, label=np.array([1, 1]))["x_grad"].shape
        (2, 4)
    """
    graph = model.graph.copy()
    found, y = only_float_output(graph, output, "a loss")
    if reduction not in get_args(Reduction):
        raise InputError(f"reduction is {', '.join(map(repr, get_args(Reduction)))}, got {reduction!r}", code="option")
    options = Options(weights, ignore_index, label_smoothing, labels, axis, delta, variance, blank, lengths, reduction)
    b = Builder(graph, prefix=name, origin=graph.new_origin("with_loss", (y.producer,)))
    made = _of_model(b, loss, y, options) if isinstance(loss, Model) else _by_name(b, loss, y, target, options)
    if reduction != "none" and made.type.rank != 0:
        made = (b.ReduceSum if reduction == "sum" else b.ReduceMean)(made, keepdims=0)
    entry = graph.add_output(made, graph.unique_output_name(name))
    result = model.with_graph(graph)
    result.roles["loss", found, target] = entry.name
    return result


def _by_name(b: Builder, name: str, y: Value, target: str, options: Options) -> Value:
    loss = LOSSES.get(name) if isinstance(name, str) else None
    if loss is None:
        raise InputError(f"no loss {name!r}{suggestion(name, LOSSES)}; there are: {', '.join(LOSSES)}, or a Model", code="loss")
    _check_options(name, options, loss.takes)
    _check_logits(name, y, loss.inverse)
    if options.labels not in get_args(Labels):
        raise InputError(f"labels are 'indices' or 'probabilities', got {options.labels!r}", code="option")
    return loss.rule(b, y, input_of(b.graph, target, loss.target(y, options)), options)


def _check_options(name: str, options: Options, takes: Sequence[str]) -> None:
    for field in fields(Options):
        given = getattr(options, field.name)
        if field.name not in (*takes, "reduction") and not (given is None or (isinstance(given, (str, int, float, tuple)) and given == field.default)):
            takers = [n for n, loss in LOSSES.items() if field.name in loss.takes]
            raise InputError(f"{name!r} takes no {field.name}=; these do: {', '.join(takers)}", code="option")


def _check_logits(name: str, y: Value, inverse: Sequence[str]) -> None:
    """Raise InputError if ``y`` went through the function that the loss applies itself."""
    found = squashed(y) if inverse else None
    if found is not None and found[0] in inverse:
        op, logits = found
        raise InputError(f"{y.name!r} is the {op} of {logits.name!r}, and {name!r} applies one itself: give it the "
                         f"logits, output={logits.name!r}", code="logits")


def input_of(graph: Graph, name: str, type_: Type) -> Value:
    """Return the input called ``name``, which must have ``type_``; a new one if there is none."""
    existing = find_input(graph, name, type_.dtype)
    if existing is None:
        return add_named_input(graph, name, type_)
    graph.set_type(existing, merge_types(existing.type, type_))
    return existing


def _of_model(b: Builder, loss: Model, y: Value, options: Options) -> Value:
    """Return the output of a loss that is a model, its first input fed with ``y``."""
    _check_options("a model", options, ())
    inputs, outputs = loss.graph.inputs, loss.graph.output_entries
    if not inputs or len(outputs) != 1 or not outputs[0].input(0).type.dtype.is_float:
        raise InputError(f"a loss that is a model has inputs (what the loss is of, then the others) and one float output; this "
                         f"has {len(inputs)} inputs and {len(outputs)} outputs", code="loss")
    merge_types(y.type, inputs[0].type)
    mapping = {inputs[0]: y, **{v: input_of(b.graph, v.name, v.type) for v in inputs[1:]}}
    return inline(b, loss.graph, mapping, [outputs[0].input(0)])[0]


# ---- losses of numbers --------------------------------------------------------------------------------------------------


@_loss("sum_of_squares")
def _(b: Builder, y: Value, t: Value, options: Options) -> Value:
    """E_n = 1/2 sum_k (y_nk - t_nk)^2."""
    difference = b.Sub(y, t)
    halves = b.Mul(b.Mul(difference, difference), 0.5)
    rank = len(y.shape)
    return halves if rank < 2 else b.ReduceSum(halves, list(range(1, rank)), keepdims=0)


@_loss("mean_squared_error")
def _(b: Builder, y: Value, t: Value, options: Options) -> Value:
    """(y - t)^2."""
    difference = b.Sub(y, t)
    return b.Mul(difference, difference)


@_loss("mean_absolute_error")
def _(b: Builder, y: Value, t: Value, options: Options) -> Value:
    """The absolute value of y - t."""
    return b.Abs(b.Sub(y, t))


@_loss("huber", "delta")
def _(b: Builder, y: Value, t: Value, options: Options) -> Value:
    """d^2 / 2 with d = y - t up to delta; with c = min(|d|, delta) that is c (|d| - c / 2) everywhere."""
    if not options.delta > 0:
        raise InputError(f"delta is above 0, got {options.delta!r}", code="option")
    size = b.Abs(b.Sub(y, t))
    near = b.Min(size, float(options.delta))
    return b.Mul(near, b.Sub(size, b.Mul(near, 0.5)))


@_loss("hinge")
def _(b: Builder, y: Value, t: Value, options: Options) -> Value:
    """max(0, 1 - t y)."""
    return b.Relu(b.Sub(b.scalar(1, y.type.dtype), b.Mul(t, y)))


@_loss("poisson")
def _(b: Builder, y: Value, t: Value, options: Options) -> Value:
    """exp(y) - t y: y is the logarithm of the rate."""
    return b.Sub(b.Exp(y), b.Mul(t, y))


@_loss("gaussian", "variance")
def _(b: Builder, y: Value, t: Value, options: Options) -> Value:
    """(log v + (y - t)^2 / v) / 2."""
    if options.variance is None:
        raise InputError("'gaussian' needs variance=, the output (or inner value) that is the variance", code="option")
    variance = find_value(b.graph, options.variance)
    difference = b.Sub(y, t)
    return b.Mul(b.Add(b.Log(variance), b.Div(b.Mul(difference, difference), variance)), 0.5)


# ---- losses of probabilities ----------------------------------------------------------------------------------------------


@_loss("sigmoid_cross_entropy", "weights", inverse=("Sigmoid", "HardSigmoid", "Softmax"))
def _(b: Builder, y: Value, t: Value, options: Options) -> Value:
    """softplus(y) - t y, whose derivative is sigmoid(y) - t; weighted, (1 - t) softplus(y) + w t softplus(-y)."""
    if options.weights is None:
        return b.Sub(b.Softplus(y), b.Mul(t, y))
    positive = b.Mul(b.Mul(t, _weights(b, options.weights, y)), b.Softplus(b.Neg(y)))
    return b.Add(positive, b.Mul(b.Sub(b.scalar(1, t.type.dtype), t), b.Softplus(y)))


def _weights(b: Builder, given: Any, like: Value, extent: int | None = None) -> Value:
    """Return weights, an array or an input by name, in the dtype of ``like``; a vector of ``extent`` entries if that is given."""
    if isinstance(given, str):
        shape = None if extent is None else (extent,)
        existing = next((v for v in b.graph.inputs if v.name == given), None)
        return existing if existing is not None else input_of(b.graph, given, Type(like.type.dtype, shape or ()))
    array: Array = np.asarray(given, like.type.dtype.numpy)
    if extent is not None and array.shape != (extent,):
        raise InputError(f"there are {extent} classes, so weights are a vector of {extent}, got {list(array.shape)}", code="shape")
    return b.graph.add_constant(array, b.fresh("loss_weights"), INITIALIZER) if array.ndim else b.graph.add_constant(array)


def _class_axis(y: Value, options: Options) -> int:
    """Return the axis of the classes, counted from the front: 1, or 0 of a vector, if nothing is said."""
    rank = len(y.shape)
    axis = options.axis if options.axis is not None else min(1, rank - 1)
    if rank == 0 or not -rank <= axis < rank:
        raise InputError(f"{y.name!r} is {y.type!r}: it has no axis {axis} of classes", code="axis")
    return axis % rank


def _class_target(y: Value, options: Options) -> Type:
    if options.labels == "probabilities":
        return y.type
    axis = _class_axis(y, options)
    return Type(INT64, y.shape[:axis] + y.shape[axis + 1:])


@_loss("softmax_cross_entropy", "weights", "ignore_index", "label_smoothing", "labels", "axis",
       inverse=("Softmax", "Sigmoid"), target=_class_target)
def _(b: Builder, y: Value, t: Value, options: Options) -> Value:
    """-log softmax(y)[t], or -sum t log softmax(y): the derivative by y is softmax(y) - t for one example."""
    if not 0 <= options.label_smoothing <= 1:
        raise InputError(f"label_smoothing is from 0 to 1, got {options.label_smoothing!r}", code="option")
    axis = _class_axis(y, options)
    extent = y.shape[axis]
    weights = None if options.weights is None else _weights(b, options.weights, y, extent if isinstance(extent, int) else None)
    if options.labels == "probabilities":
        return _by_probabilities(b, y, t, axis, weights, options)
    if len(y.shape) == 1:
        y, t, axis = b.Unsqueeze(y, [0]), b.Unsqueeze(t, [0]), 1
        made = _by_indices(b, y, t, weights, options)
        return made if made.type.rank == 0 else b.Squeeze(made, [0])
    rest = [i for i in range(len(y.shape)) if i != axis]
    return _by_indices(b, permuted(b, y, [rest[0], axis, *rest[1:]]), t, weights, options)


def _by_indices(b: Builder, y: Value, t: Value, weights: Value | None, options: Options) -> Value:
    """Return the cross-entropy of labels against scores with their classes along axis 1."""
    how = {"ignore_index": options.ignore_index}
    smoothing = float(options.label_smoothing)
    if not smoothing:
        return b.SoftmaxCrossEntropyLoss(y, t, weights, reduction=options.reduction, **how)
    log_prob = b.LogSoftmax(y, axis=1)
    hard = b.NegativeLogLikelihoodLoss(log_prob, t, weights, reduction="none", **how)
    unit = b.NegativeLogLikelihoodLoss(b.filled(-1, log_prob), t, reduction="none", **how)  # 0 where labels are ignored
    shares = b.NegativeLogLikelihoodLoss(b.filled(-1, log_prob), t, weights, reduction="none", **how)
    soft = b.Mul(b.Neg(b.ReduceMean(_weighted(b, log_prob, weights, 1), [1], keepdims=0)), unit)
    loss = b.Add(b.Mul(hard, 1 - smoothing), b.Mul(soft, smoothing))
    if options.reduction != "mean":
        return loss
    return b.Div(b.ReduceMean(loss, keepdims=0), b.ReduceMean(shares, keepdims=0))  # sums overflow in float16


def _weighted(b: Builder, x: Value, weights: Value | None, axis: int) -> Value:
    """Return ``x`` times one weight per entry along ``axis``."""
    if weights is None:
        return x
    behind = len(x.shape) - 1 - axis
    return b.Mul(x, b.Unsqueeze(weights, list(range(1, 1 + behind))) if behind else weights)


def _by_probabilities(b: Builder, y: Value, t: Value, axis: int, weights: Value | None, options: Options) -> Value:
    if options.ignore_index is not None:
        raise InputError("ignore_index names a label; probabilities have none", code="option")
    smoothing = float(options.label_smoothing)
    if smoothing:
        each = b.Div(b.scalar(smoothing, y.type.dtype), b.cast_like(b.extent(y, axis), y))
        t = b.Add(b.Mul(t, 1 - smoothing), each)
    terms = b.Mul(t, _weighted(b, b.LogSoftmax(y, axis=axis), weights, axis))
    return b.Neg(b.ReduceSum(terms, [axis], keepdims=0))


def _label_rows(y: Value, options: Options) -> Type:
    if y.type.rank != 3:
        raise InputError(f"'ctc' takes scores [steps, examples, classes], and {y.name!r} is {y.type!r}", code="shape")
    return Type(INT64, (y.shape[1], UNKNOWN))


@_loss("ctc", "blank", "lengths", inverse=("Softmax", "Sigmoid"), target=_label_rows)
def _(b: Builder, y: Value, t: Value, options: Options) -> Value:
    """-log sum over alignments of prod_t softmax(y)_t: see ``ctc``."""
    classes = y.shape[2]
    if isinstance(classes, int) and not 0 <= options.blank < classes:
        raise InputError(f"blank is a class from 0 to {classes - 1}, got {options.blank!r}", code="option")
    steps, count = (input_of(b.graph, name, Type(INT64, (y.shape[1],))) for name in options.lengths)
    each = b.cast_like(ctc_of_each(b, b.cast(y, y.type.dtype.wide), t, steps, count, options.blank), y)
    if options.reduction != "mean":
        return each
    return b.ReduceMean(b.Div(each, b.cast_like(b.Max(count, 1), each)), keepdims=0)


@_loss("kl_divergence", "axis", inverse=("Softmax",))
def _(b: Builder, y: Value, t: Value, options: Options) -> Value:
    """sum_k t_k (log t_k - log softmax(y)_k), with 0 log 0 = 0."""
    axis = _class_axis(y, options)
    zero = b.scalar(0, t.type.dtype)
    own = b.Where(b.Greater(t, zero), b.Mul(t, b.Log(t)), zero)
    return b.ReduceSum(b.Sub(own, b.Mul(t, b.LogSoftmax(y, axis=axis))), [axis], keepdims=0)
