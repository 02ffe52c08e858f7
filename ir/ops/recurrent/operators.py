"""Recurrent operators: RNN, GRU and LSTM. Derivatives come from their expansion into one Scan per direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowgrad.ir.batching import BatchBuilder, within
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.ops.operands import concatenated, ramp
from flowgrad.ir.ops.recurrent.recurrence import Cell, GraphOps, NumericOps, activations, gru_step, lstm_step, rnn_step
from flowgrad.ir.ops.registry import attr, op
from flowgrad.ir.types import BOOL, INT64, UNKNOWN, DimLike, Type, merge_dims

Step = Callable[[Cell, Any, Any, Sequence[Any], Sequence[Any]], list[Any]]
DIRECTIONS = {"forward": (0,), "reverse": (1,), "bidirectional": (0, 1)}


class Kind(NamedTuple):
    """What tells the recurrent operators apart: step, gates, states and default activations."""

    step: Step
    gates: int
    states: int
    functions: tuple[str, ...]


RNN = Kind(rnn_step, 1, 1, ("Tanh",))
GRU = Kind(gru_step, 3, 1, ("Sigmoid", "Tanh"))
LSTM = Kind(lstm_step, 4, 2, ("Sigmoid", "Tanh", "Tanh"))
KINDS = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}


def cells_of(kind: Kind, options: dict[str, Any]) -> list[tuple[int, Cell]]:
    """Return, per direction, whether it runs backward, and its cell. Raises ValidationError."""
    direction = options["direction"]
    if direction not in DIRECTIONS:
        raise ValidationError(f"no direction {direction!r}; known: {', '.join(DIRECTIONS)}", code="attribute")
    turns = DIRECTIONS[direction]
    count = len(kind.functions)
    names = options["activations"] or kind.functions * len(turns)
    if len(names) < count * len(turns):
        raise ValidationError(f"{len(names)} activations given, {count * len(turns)} needed", code="attribute")
    functions = activations(names, options["activation_alpha"] or (), options["activation_beta"] or ())
    clip = options["clip"]
    return [
        (backward, Cell(tuple(functions[count * d : count * (d + 1)]), None if clip is None else float(clip),
                        bool(options.get("input_forget")), bool(options.get("linear_before_reset"))))
        for d, backward in enumerate(turns)
    ]


# ---- on arrays ----------------------------------------------------------------------------------------------------------


def run(kind: Kind, x: Array, w: Array, r: Array, b: Array | None, lengths: Array | None,
        initial: Sequence[Array | None], p: Array | None, options: dict[str, Any]) -> list[Array]:
    """Return Y and the final states of a recurrent operator."""
    turned = bool(options["layout"])
    if turned:
        x, initial = np.swapaxes(x, 0, 1), [None if s is None else np.swapaxes(s, 0, 1) for s in initial]
    steps, batch = x.shape[:2]
    hidden = r.shape[-1]
    mask = None if lengths is None else np.arange(steps)[:, None, None] < lengths[None, :, None]
    rows: list[Array] = []
    finals: list[list[Array]] = []
    for d, (backward, cell) in enumerate(cells_of(kind, options)):
        bias, kept = _biases(kind, cell, None if b is None else b[d], hidden)
        gates = np.matmul(x.reshape(steps * batch, x.shape[-1]), w[d].T)
        if bias is not None:
            gates += bias
        gates = gates.reshape(steps, batch, gates.shape[-1])
        states = [np.zeros((batch, hidden), x.dtype) if s is None else s[d] for s in initial]
        weights = [*_recurrent(kind, np.ascontiguousarray(r[d].T), hidden), *kept, *_peepholes(p, d, hidden)]
        y = np.zeros((steps, batch, hidden), x.dtype)
        for t in range(steps - 1, -1, -1) if backward else range(steps):
            new = kind.step(cell, NumericOps, gates[t], states, weights)
            if mask is None:
                y[t] = new[0]
            else:
                np.copyto(y[t], new[0], where=mask[t])
                new = [np.where(mask[t], after, before) for after, before in zip(new, states, strict=True)]
            states = new
        rows.append(y)
        finals.append(states)
    ys = np.stack(rows, axis=1)
    ends = [np.stack(parts, axis=0) for parts in zip(*finals, strict=True)]
    if turned:
        ys, ends = ys.transpose(2, 0, 1, 3), [np.swapaxes(e, 0, 1) for e in ends]
    return [ys, *ends]


def _biases(kind: Kind, cell: Cell, b: Array | None, hidden: int) -> tuple[Array | None, list[Array]]:
    """Return the bias of the input projection, and that of a recurrence which stays inside the step."""
    if b is None:
        return None, []
    half = kind.gates * hidden
    total = b[:half] + b[half:]
    if not cell.reset_after:
        return total, []
    return np.concatenate([total[: 2 * hidden], b[2 * hidden : half]]), [b[-hidden:]]


def _recurrent(kind: Kind, r: Array, hidden: int) -> list[Array]:
    if kind is not GRU:
        return [r]
    return [np.ascontiguousarray(r[:, : 2 * hidden]), np.ascontiguousarray(r[:, 2 * hidden :])]


def _peepholes(p: Array | None, direction: int, hidden: int) -> list[Array]:
    return [] if p is None else np.split(p[direction], 3)


# ---- as nodes -------------------------------------------------------------------------------------------------------------


def expanded(b: Builder, node: Node) -> tuple[Value | None, ...]:
    """Return Y and the final states from one MatMul for all inputs and one Scan over time per direction."""
    return _Expansion(b, node).results()


class _Expansion:
    """One recurrent node being written as plain operators."""

    def __init__(self, b: Builder, node: Node) -> None:
        self.b, self.node = b, node
        self.kind = KINDS[node.op]
        self.turned = bool(attr(node, "layout"))
        names = ("direction", "activations", "activation_alpha", "activation_beta", "clip")
        options = {name: attr(node, name) for name in names}
        for name in ("input_forget", "linear_before_reset"):
            options[name] = name in node.attributes and node.attributes[name]
        self.cells = cells_of(self.kind, options)
        x = node.input(0)
        self.x = b.Transpose(x, perm=[1, 0, 2]) if self.turned else x
        self.hidden = hidden_size(node)

    def results(self) -> tuple[Value | None, ...]:
        """Return one value per output of the node."""
        mask = self._mask()
        made = [self._direction(d, backward, cell, mask) for d, (backward, cell) in enumerate(self.cells)]
        axis = 2 if self.turned else 1
        wanted = [self.node.optional_output(i) is not None for i in range(1 + self.kind.states)]
        found: list[Value | None] = [None] * len(wanted)
        if wanted[0]:
            rows = [self.b.Transpose(m[0], perm=[1, 0, 2]) for m in made] if self.turned else [m[0] for m in made]
            found[0] = self._joined(rows, axis)
        for i in range(1, len(wanted)):
            found[i] = self._joined([m[i] for m in made], 1 if self.turned else 0) if wanted[i] else None
        return tuple(found)

    def _joined(self, parts: Sequence[Value], axis: int) -> Value:
        return concatenated(self.b, [self.b.Unsqueeze(p, [axis]) for p in parts], axis)

    def _mask(self) -> Value | None:
        """Return which steps belong to the sequence of each row of the batch: bool [T, B, 1]."""
        lengths = self.node.optional(4)
        if lengths is None:
            return None
        times = self.b.Unsqueeze(ramp(self.b, self.b.extent(self.x, 0)), [1, 2])
        return self.b.Less(times, self.b.Unsqueeze(self.b.cast(lengths, INT64), [0, 2]))

    def _part(self, value: Value, direction: int) -> Value:
        """Return what belongs to one direction of a weight."""
        if len(self.cells) == 1:
            return self.b.Squeeze(value, [0])
        return self.b.Gather(value, np.int64(direction), axis=0)

    def _rows(self, value: Value, first: int, last: int, axis: int = 0) -> Value:
        return self.b.Slice(value, [first * self.hidden], [last * self.hidden], [axis])

    def _direction(self, d: int, backward: int, cell: Cell, mask: Value | None) -> list[Value]:
        gates = self.b.MatMul(self.x, self.b.Transpose(self._part(self.node.input(1), d), perm=[1, 0]))
        r = self.b.Transpose(self._part(self.node.input(2), d), perm=[1, 0])
        weights = [self._rows(r, 0, 2, 1), self._rows(r, 2, 3, 1)] if self.kind is GRU else [r]
        bias, kept = self._biases(cell, d)
        if bias is not None:
            gates = self.b.Add(gates, bias)
        weights += [*kept, *self._peepholes(d)]
        return self._scan(cell, gates, mask, self._initial(d), weights, backward)

    def _biases(self, cell: Cell, d: int) -> tuple[Value | None, list[Value]]:
        given = self.node.optional(3)
        if given is None:
            return None, []
        b, n = self._part(given, d), self.kind.gates
        if not cell.reset_after:
            return self.b.Add(self._rows(b, 0, n), self._rows(b, n, 2 * n)), []
        gates = self.b.Add(self._rows(b, 0, 2), self._rows(b, 3, 5))
        return self.b.add("Concat", [gates, self._rows(b, 2, 3)], {"axis": 0}), [self._rows(b, 5, 6)]

    def _peepholes(self, d: int) -> list[Value]:
        given = self.node.optional(7) if self.kind is LSTM else None
        if given is None:
            return []
        p = self._part(given, d)
        return [self._rows(p, k, k + 1) for k in range(3)]

    def _initial(self, d: int) -> list[Value]:
        states: list[Value] = []
        for index in range(5, 5 + self.kind.states):
            given = self.node.optional(index)
            if given is None:
                shape = self.b.add("Concat", [self.b.extent(self.x, 1), [self.hidden]], {"axis": 0})
                states.append(self.b.Expand(self.b.scalar(0, self.x.type.dtype), shape))
            elif self.turned:
                states.append(self.b.Gather(given, np.int64(d), axis=1))
            else:
                states.append(self._part(given, d))
        return states

    def _scan(self, cell: Cell, gates: Value, mask: Value | None, initial: Sequence[Value], weights: Sequence[Value],
              backward: int) -> list[Value]:
        """Return Y [T, B, H] of one direction, then its final states."""
        body = Graph(f"{self.node.label}_step", self.b.graph.limits)
        body._next_dim = self.b.graph._next_dim
        inner = Builder(body, prefix="step")
        batch = gates.shape[1]
        state_type = Type(gates.type.dtype, (batch, self.hidden))
        states = [body.add_input(name, state_type) for name in ("h", "c")[: len(initial)]]
        row = body.add_input("gates", Type(gates.type.dtype, gates.shape[1:]))
        now = None if mask is None else body.add_input("mask", Type(BOOL, (batch, 1)))
        captured = [body.add_input(f"weight{k}", v.type) for k, v in enumerate(weights)]
        after = self.kind.step(cell, GraphOps(inner), row, states, captured)
        y = after[0]
        if now is not None:
            y = inner.Where(now, y, inner.scalar(0, y.type.dtype))
            after = [inner.Where(now, new, old) for new, old in zip(after, states, strict=True)]
        for k, value in enumerate([*after, inner.Identity(y)]):
            body.add_output(value, f"out{k}")
        rows = [gates] if mask is None else [gates, mask]
        attributes: dict[str, Any] = {"num_scan_inputs": len(rows)}
        if backward:
            attributes |= {"scan_input_directions": (1,) * len(rows), "scan_output_directions": (1,)}
        made = self.b.add_several("Scan", [*initial, *rows], attributes, outputs=len(after) + 1, captures=list(weights),
                          subgraphs={"body": body})
        return [made[-1], *made[:-1]]


# ---- types ----------------------------------------------------------------------------------------------------------------


def hidden_size(node: Node) -> int:
    """Return the number of hidden units; ValidationError if neither attribute nor weights tell it."""
    given = attr(node, "hidden_size")
    if given is not None:
        return int(given)
    found = node.input(2).type.shape
    if found is None or not isinstance(found[-1], int):
        raise ValidationError(f"the hidden size of {node.op} is not known", code="shape", where=describe(node))
    return found[-1]


def recurrent_types(node: Node) -> list[Type]:
    """Y is [T, D, B, H], states are [D, B, H]; with layout 1 [B, T, D, H] and [B, D, H]."""
    kind = KINDS[node.op]
    x, w, r = (node.input(i).type for i in range(3))
    count = len(DIRECTIONS.get(attr(node, "direction"), ()))
    if not count:
        raise ValidationError(f"no direction {attr(node, 'direction')!r}", code="attribute", where=describe(node))
    for what, type_, rank in (("X", x, 3), ("W", w, 3), ("R", r, 3)):
        if type_.rank not in (None, rank):
            raise ValidationError(f"{what} of {node.op} is {type_!r}, expected rank {rank}", code="shape",
                                  where=describe(node))
    hidden = hidden_size(node)
    for type_ in (w, r):
        if type_.shape is not None:
            merge_dims(type_.shape[0], count)
            merge_dims(type_.shape[1], kind.gates * hidden)
    turned = bool(attr(node, "layout"))
    time: DimLike = UNKNOWN
    batch: DimLike = UNKNOWN
    if x.shape is not None:
        batch, time = (x.shape[0], x.shape[1]) if turned else (x.shape[1], x.shape[0])
    state = (batch, count, hidden) if turned else (count, batch, hidden)
    y = (batch, time, count, hidden) if turned else (time, count, batch, hidden)
    return [Type(x.dtype, y), *[Type(x.dtype, state)] * kind.states]


def recurrent_ranks(node: Node) -> list[int | None]:
    """Sequence, batch and features; weights by direction."""
    return [3, 3, 3]


# ---- operators --------------------------------------------------------------------------------------------------------------


@op("RNN", since=14, outputs=("Y", "Y_h"), required_outputs=0)
def rnn(
    x: Array, w: Array, r: Array, b: Array | None = None, sequence_lens: Array | None = None,
    initial_h: Array | None = None, *, activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None, activations: Sequence[str] = ("Tanh", "Tanh"),
    clip: float | None = None, direction: str = "forward", hidden_size: int | None = None, layout: int = 0,
) -> list[Array]:
    options = {"activations": activations, "activation_alpha": activation_alpha, "activation_beta": activation_beta,
               "clip": clip, "direction": direction, "layout": layout}
    return run(RNN, x, w, r, b, sequence_lens, [initial_h], None, options)


@op("GRU", since=14, outputs=("Y", "Y_h"), required_outputs=0)
def gru(
    x: Array, w: Array, r: Array, b: Array | None = None, sequence_lens: Array | None = None,
    initial_h: Array | None = None, *, activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None, activations: Sequence[str] | None = None,
    clip: float | None = None, direction: str = "forward", hidden_size: int | None = None, layout: int = 0,
    linear_before_reset: int = 0,
) -> list[Array]:
    options = {"activations": activations, "activation_alpha": activation_alpha, "activation_beta": activation_beta,
               "clip": clip, "direction": direction, "layout": layout, "linear_before_reset": linear_before_reset}
    return run(GRU, x, w, r, b, sequence_lens, [initial_h], None, options)


@op("LSTM", since=14, outputs=("Y", "Y_h", "Y_c"), required_outputs=0)
def lstm(
    x: Array, w: Array, r: Array, b: Array | None = None, sequence_lens: Array | None = None,
    initial_h: Array | None = None, initial_c: Array | None = None, p: Array | None = None, *,
    activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None, clip: float | None = None, direction: str = "forward",
    hidden_size: int | None = None, input_forget: int = 0, layout: int = 0,
) -> list[Array]:
    options = {"activations": activations, "activation_alpha": activation_alpha, "activation_beta": activation_beta,
               "clip": clip, "direction": direction, "layout": layout, "input_forget": input_forget}
    return run(LSTM, x, w, r, b, sequence_lens, [initial_h, initial_c], p, options)


for _operator in (rnn, gru, lstm):
    _operator.types(recurrent_types)
    _operator.ranks(recurrent_ranks)
    _operator.expansion(expanded)


# ---- many examples ----------------------------------------------------------------------------------------------------------


def _batched(b: BatchBuilder, node: Node, *xs: Value | None) -> Any:
    """More sequences; examples with weights of their own are run one by one."""
    axis = 0 if attr(node, "layout") else 1
    return within(b, node, xs, {0: axis, 4: 0, 5: axis, 6: axis}, [2 * axis, axis, axis])


for _definition in (rnn, gru, lstm):
    _definition.batch(_batched)
