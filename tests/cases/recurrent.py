"""Rows for the recurrent operators: one per variant of gates, directions, layouts and optional inputs."""

from __future__ import annotations

from typing import Any

from tests.op_cases import Case, In, fixed, normal

T, B, WIDTH, H = 4, 3, 2, 3
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
BOTH = "bidirectional"


def row(op: str, name: str, *, directions: int = 1, bias: bool = True, lengths: Any = None, initial: bool = False,
        peephole: bool = False, reference: bool = False, turned: bool = False, outputs: Any = None, **attributes: Any
        ) -> Case:
    """Return a row of a recurrent op; ``turned`` is layout 1, ``initial`` gives initial states."""
    gates = GATES[op]
    state = normal(B, directions, H) if turned else normal(directions, B, H)
    inputs: list[In | None] = [
        normal(B, T, WIDTH) if turned else normal(T, B, WIDTH), normal(directions, gates * H, WIDTH), normal(directions, gates * H, H),
        normal(directions, 2 * gates * H) if bias else None, None if lengths is None else fixed(lengths, "int32"),
        state if initial else None,
    ]
    if op == "LSTM":
        inputs += [state if initial else None, normal(directions, 3 * H) if peephole else None]
    attributes |= {"hidden_size": H, "layout": 1} if turned else {"hidden_size": H}
    if directions == 2:
        attributes["direction"] = BOTH
    return Case(op, inputs, attributes, outputs=outputs or (3 if op == "LSTM" else 2), name=name, reference=reference)


CASES: list[Case] = [
    row("RNN", "plain", bias=False, reference=True),
    row("RNN", "initial", initial=True, reference=True),
    row("RNN", "reverse", direction="reverse", lengths=[4, 1, 2]),
    row("RNN", "both", directions=2, initial=True, activations=("Relu", "Sigmoid")),
    row("RNN", "turned", turned=True, initial=True, activations=("ScaledTanh",), activation_alpha=(0.7,), activation_beta=(1.3,)),
    row("RNN", "affine", activations=("Affine",), activation_alpha=(0.3,), activation_beta=(0.1,)),
    row("RNN", "last_state", outputs=["", "y_h"]),
    row("GRU", "plain", bias=False, reference=True),
    row("GRU", "initial", initial=True, reference=True),
    row("GRU", "after", initial=True, linear_before_reset=1, reference=True),
    row("GRU", "after_no_bias", bias=False, linear_before_reset=1),
    row("GRU", "reverse", direction="reverse", linear_before_reset=1, lengths=[2, 4, 3]),
    row("GRU", "both", directions=2, initial=True, lengths=[4, 2, 1], activations=("Sigmoid", "Tanh", "Sigmoid", "Elu")),
    row("GRU", "turned", turned=True, initial=True, directions=2),
    row("GRU", "hard", activations=("HardSigmoid", "Softsign"), activation_alpha=(0.3,), activation_beta=(0.4,)),
    row("LSTM", "plain", bias=False, reference=True),
    row("LSTM", "initial", initial=True, reference=True),
    row("LSTM", "peephole", initial=True, peephole=True, reference=True),
    row("LSTM", "reverse", direction="reverse", initial=True, lengths=[3, 4, 1]),
    row("LSTM", "both", directions=2, initial=True, peephole=True, lengths=[4, 1, 3]),
    row("LSTM", "turned", turned=True, initial=True, directions=2, lengths=[1, 2, 4]),
    row("LSTM", "turned_plain", turned=True),
    row("LSTM", "coupled", initial=True, input_forget=1),
    row("LSTM", "clip", initial=True, clip=1.0),
    row("LSTM", "activations", initial=True, activations=("Sigmoid", "Softplus", "Relu")),
    row("LSTM", "last_states", initial=True, outputs=["", "y_h", "y_c"]),
    row("LSTM", "rows_only", outputs=1),
    row("LSTM", "leaky", activations=("HardSigmoid", "LeakyRelu", "ThresholdedRelu"), activation_alpha=(0.25, 0.1, 0.2),
        activation_beta=(0.45,)),
]
