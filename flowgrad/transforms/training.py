"""The transform train_step: loss, gradients and update of the weights as one model."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from flowgrad.ir.arguments import is_word
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, suggestion
from flowgrad.ir.graph import CONSTANT, DEFAULT, Graph, Node, Value
from flowgrad.ir.ops.operands import sum_of
from flowgrad.ir.types import FLOAT64, INT64
from flowgrad.model import Model
from flowgrad.passes.selection import Names, as_list, find_wrt
from flowgrad.transforms.derivatives import value_and_grad

CLIP_GUARD = 1e-6
"""What is added to a norm before it divides."""


@dataclass
class _Update:
    """One weight being updated: its gradient, and where its states are kept."""

    b: Builder
    weight: Value
    gradient: Value
    rate: Value
    step: Value
    settings: dict[str, float]
    name: str
    states: dict[str, tuple[Value, Value]] = field(default_factory=dict)

    def number(self, name: str) -> Value:
        """Return a setting in the dtype of the weight."""
        return self.b.scalar(self.settings[name], self.weight.type.dtype)

    def state(self, name: str) -> Value:
        """Return a state of the weight before the step: an input, zeros at first."""
        graph, weight = self.b.graph, self.weight
        zeros = np.zeros(weight.type.static_shape, weight.type.dtype.numpy)
        before = graph.add_constant(zeros, graph.unique_name(f"{self.name}_{name}"), DEFAULT)
        self.states[name] = before, before
        return before

    def keep(self, name: str, after: Value) -> Value:
        """Note what a state is after the step."""
        self.states[name] = self.states[name][0], after
        return after

    def averaged(self, name: str, value: Value, decay: str) -> Value:
        """Return decay * state + (1 - decay) * value, the state after the step."""
        b, rate = self.b, self.number(decay)
        rest = b.scalar(1 - self.settings[decay], self.weight.type.dtype)
        return self.keep(name, b.Add(b.Mul(self.state(name), rate), b.Mul(value, rest)))


Optimizer = Callable[[_Update], Value]
"""Returns what the weight is after the step."""


@dataclass(frozen=True)
class _Declared:
    rule: Optimizer
    settings: dict[str, float]


OPTIMIZERS: dict[str, _Declared] = {}


def _optimizer(name: str, **settings: float) -> Callable[[Optimizer], Optimizer]:
    def declare(rule: Optimizer) -> Optimizer:
        OPTIMIZERS[name] = _Declared(rule, settings)
        return rule

    return declare


def train_step(
    model: Model, optimizer: str = "adam", of: str | None = None, wrt: Names = "params", frozen: Names = (), *,
    clip_norm: float | None = None, learning_rate: float = 1e-3, **settings: float,
) -> Model:
    """Return a model of one step of training: batch, weights and state in, loss, new weights and new state out.

    The weights in ``wrt`` that no pattern in ``frozen`` matches, the states of the optimizer and the input
    ``learning_rate`` have defaults (what they are, zeros, the given number), so that the first step takes a batch alone.
    Feed what comes out into the next step: ``next_inputs`` says which input each output becomes; what stands for ``w`` is
    called ``w_new``. The outputs are the loss ``of`` (default: the only scalar output), the weights, the running statistics of
    every BatchNormalization that is in training mode (unless ``frozen``), the states.

    Optimizers, g the gradient, each setting with its default:

    * ``sgd`` (momentum=0, nesterov=0, weight_decay=0): v = momentum v + g; w = w - rate (v, or g + momentum v);
    * ``adam`` (beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0): m and v the means of g and g^2, each over 1 - beta^t;
      w = w - rate m / (sqrt(v) + epsilon);
    * ``adamw`` (the same, weight_decay=0.01): the decay shrinks the weights, not the gradients;
    * ``rmsprop`` (decay=0.99, momentum=0, epsilon=1e-8, weight_decay=0): g over the root of the mean of g^2.

    ``clip_norm`` scales all gradients together down to that norm. Weights narrower than float32 are updated in it and
    rounded. Raises InputError for unknown names and settings, and for weights that are computed.

    In an exported step the weights are inputs that have a value, which onnxruntime warns of as it loads the file: its
    ``SessionOptions.log_severity_level = 3`` keeps it quiet.

    Examples:
        >>> step = fg.train_step(model, "sgd", of="loss", frozen=["b*"], learning_rate=0.1)
        >>> step(batch).keys()
        dict_keys(['loss', 'w1_new', 'w2_new', 'step_new'])
    """
    declared = _declared(optimizer, settings)
    patterns = as_list(frozen)
    chosen = _unfrozen(model, wrt, patterns)
    first = value_and_grad(model, of, chosen)
    graph = first.graph.copy()
    loss, *entries = graph.output_entries
    b = Builder(graph, prefix="step", origin=graph.new_origin("train_step", ()))
    rate = graph.add_constant(np.asarray(learning_rate, loss.input(0).type.dtype.numpy), graph.unique_name("learning_rate"), DEFAULT)
    before = graph.add_constant(np.asarray(0, np.int64), graph.unique_name("step"), DEFAULT)
    after = b.Add(before, b.scalar(1, INT64))
    gradients = _clipped(b, [entry.input(0) for entry in entries], clip_norm)
    for entry in entries:
        graph.remove(entry)
    carried: list[tuple[Value, Value]] = []
    states: list[tuple[Value, Value]] = []
    for name, gradient in zip(chosen, gradients, strict=True):
        b.prefix = name
        weight, wide = graph.value(name), gradient.type.dtype.wide
        graph.set_role(weight, DEFAULT)  # an input that has a value, in exported files too
        made = _Update(b, b.cast(weight, wide), b.cast(gradient, wide), b.cast(rate, wide), after,
                       {**declared.settings, **settings}, name)
        carried.append((weight, b.cast_like(declared.rule(made), weight)))
        states += made.states.values()
    carried += _running_statistics(b, patterns)
    result = Model(graph, notes=first.notes)
    for old, new in [*carried, *states, (before, after)]:
        entry = graph.add_output(new, graph.unique_output_name(f"{old.name}_new"))
        result.roles["next", "", old.name] = entry.name
    result.stabilize = first.stabilize
    return result


def next_inputs(step: Model) -> dict[str, str]:
    """Return which input of the next step each output of a step of training is: output names to input names.

    Examples:
        >>> fg.next_inputs(fg.train_step(model, "sgd", of="loss", wrt=["w1"]))
        {'w1_new': 'w1', 'step_new': 'step'}
    """
    return {name: wrt for (role, _, wrt), name in step.roles.items() if role == "next"}


def _declared(name: str, settings: dict[str, float]) -> _Declared:
    if not is_word(name, OPTIMIZERS):
        raise InputError(f"no optimizer {name!r}{suggestion(str(name), OPTIMIZERS)}; there are: {', '.join(OPTIMIZERS)}", code="option")
    declared = OPTIMIZERS[name]
    for key in settings:
        if key not in declared.settings:
            raise InputError(f"{name!r} has no setting {key!r}{suggestion(key, declared.settings)}; it has: "
                             f"{', '.join(declared.settings)}", code="option")
    return declared


def _unfrozen(model: Model, wrt: Names, frozen: Sequence[str]) -> list[str]:
    """Return the names in ``wrt`` that no pattern in ``frozen`` matches."""
    names = [v.name for v in find_wrt(model.graph.copy(), wrt)]
    known = [*names, *(v.name for node in _in_training_mode(model.graph) for v in node.operands[3:])]
    for pattern in frozen:
        if not isinstance(pattern, str):
            raise InputError(f"frozen takes names and patterns of names, not {type(pattern).__name__}", code="type")
        if not fnmatch.filter(known, pattern):
            several = [p for p in pattern.replace(",", " ").split() if fnmatch.filter(known, p)]
            hint = f"; several patterns are a list: frozen={several!r}" if len(several) > 1 else suggestion(pattern, known)
            raise InputError(f"frozen={pattern!r} matches none of {', '.join(known[:12])}{hint}", code="name")
    chosen = [n for n in names if not _is_frozen(n, frozen)]
    if not chosen:
        raise InputError("every weight is frozen: there is nothing to train", code="name")
    computed = [n for n in chosen if model.graph.value(n).producer.op != CONSTANT]
    if computed:
        raise InputError(f"{', '.join(map(repr, computed))} are no stored weights, so a step cannot give them new values: leave "
                         "them out of wrt, or name them in frozen", code="name")
    return chosen


def _is_frozen(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _in_training_mode(graph: Graph) -> list[Node]:
    """Return the nodes that normalise by the statistics of the batch, and keep running ones."""
    return [node for node in graph.nodes() if node.op == "BatchNormalization" and node.attributes.get("training_mode")]


def _running_statistics(b: Builder, frozen: Sequence[str]) -> list[tuple[Value, Value]]:
    """Return what running means and variances are before and after the step. InputError if two nodes keep them in one place."""
    carried: dict[Value, Value] = {}
    for node in _in_training_mode(b.graph):
        for slot, name in ((3, "running_mean"), (4, "running_var")):
            before = node.input(slot)
            if _is_frozen(before.name, frozen):
                continue
            if before.producer.op != CONSTANT or before in carried:
                what = "shared by several" if before in carried else "no stored weight of a"
                raise InputError(f"{before.name!r} is {what} BatchNormalization in training mode, so a step cannot give it a new value: "
                                 "name it in frozen", code="name")
            b.graph.set_role(before, DEFAULT)
            carried[before] = b.residual(node, name)
    return list(carried.items())


def _clipped(b: Builder, gradients: Sequence[Value], limit: float | None) -> list[Value]:
    """Return the gradients, scaled together so that the norm of all is at most ``limit``."""
    if limit is None:
        return list(gradients)
    if not limit > 0:
        raise InputError(f"clip_norm is above 0, got {limit!r}", code="option")
    wide = gradients[0].type.dtype.wide
    squares = [b.cast(b.ReduceSumSquare(b.cast(g, g.type.dtype.wide), keepdims=0), wide) for g in gradients]
    norm = b.Sqrt(sum_of(b, squares))
    scale = b.Min(b.Div(b.scalar(limit, wide), b.Add(norm, CLIP_GUARD)), b.scalar(1, wide))
    return [b.Mul(g, b.cast_like(scale, g)) for g in gradients]


def _decayed(update: _Update) -> Value:
    """Return the gradient of the loss and of weight_decay / 2 times the squared norm of the weight."""
    if not update.settings["weight_decay"]:
        return update.gradient
    return update.b.Add(update.gradient, update.b.Mul(update.weight, update.number("weight_decay")))


def _moved(update: _Update, direction: Value) -> Value:
    return update.b.Sub(update.weight, update.b.Mul(direction, update.rate))


@_optimizer("sgd", momentum=0.0, nesterov=0.0, weight_decay=0.0)
def _(update: _Update) -> Value:
    """v = momentum v + g; w = w - rate v, or with Nesterov's momentum w - rate (g + momentum v)."""
    b, g = update.b, _decayed(update)
    if not update.settings["momentum"]:
        return _moved(update, g)
    momentum = update.number("momentum")
    velocity = update.keep("velocity", b.Add(b.Mul(update.state("velocity"), momentum), g))
    return _moved(update, b.Add(g, b.Mul(velocity, momentum)) if update.settings["nesterov"] else velocity)


@_optimizer("adam", beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)
def _(update: _Update) -> Value:
    """w = w - rate m' / (sqrt(v') + epsilon)."""
    return _moved(update, _adam_direction(update, _decayed(update)))


@_optimizer("adamw", beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01)
def _(update: _Update) -> Value:
    """w = w - rate (decay w + m' / (sqrt(v') + epsilon))."""
    shrunk = update.b.Mul(update.weight, update.number("weight_decay"))
    return _moved(update, update.b.Add(shrunk, _adam_direction(update, update.gradient)))


def _adam_direction(update: _Update, g: Value) -> Value:
    """Return m' / (sqrt(v') + epsilon), with m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t), the corrections in float64."""
    b = update.b
    mean = update.averaged("mean", g, "beta1")
    square = update.averaged("square", b.Mul(g, g), "beta2")
    first, second = (_correction(update, name) for name in ("beta1", "beta2"))
    return b.Div(b.Div(mean, first), b.Add(b.Sqrt(b.Div(square, second)), update.number("epsilon")))


def _correction(update: _Update, name: str) -> Value:
    b = update.b
    power = b.Pow(b.scalar(update.settings[name], FLOAT64), b.cast(update.step, FLOAT64))
    return b.cast_like(b.Sub(b.scalar(1, FLOAT64), power), update.weight)


@_optimizer("rmsprop", decay=0.99, momentum=0.0, epsilon=1e-8, weight_decay=0.0)
def _(update: _Update) -> Value:
    """d = g / (sqrt(mean of g^2) + epsilon); v = momentum v + d; w = w - rate v."""
    b, g = update.b, _decayed(update)
    square = update.averaged("square", b.Mul(g, g), "decay")
    direction = b.Div(g, b.Add(b.Sqrt(square), update.number("epsilon")))
    if update.settings["momentum"]:
        momentum = update.number("momentum")
        direction = update.keep("velocity", b.Add(b.Mul(update.state("velocity"), momentum), direction))
    return _moved(update, direction)
