"""vmap of every operator: the table of cases for many examples at once, against runs one by one.

``python -m tests.batching_sweep`` does all that this does a part of.
"""

from __future__ import annotations

import collections

import pytest

from flowgrad.ir.errors import UnsupportedError
from tests.batching_sweep import (
    DERIVATIVES,
    SUBSETS,
    check_derivative,
    check_derivative_of_examples,
    check_engine,
    check_export,
    check_rows,
    check_twice,
    check_values,
    subset,
)
from tests.op_cases import Case, all_cases

BY_OP: dict[str, list[Case]] = collections.defaultdict(list)
for _case in all_cases():
    BY_OP[_case.op].append(_case)

ONE_BY_ONE = {
    "ConvInteger": "all others", "ConvTranspose": "all", "DeformConv": "all others", "DequantizeLinear": "all others",
    "GRU": "all others", "If": "all first", "ImageDecoder": "all", "LSTM": "all others", "Loop": "all first",
    "MatMulInteger": "all first others", "MaxUnpool": "all first others", "MelWeightMatrix": "all first others",
    "NegativeLogLikelihoodLoss": "all others", "OptionalGetElement": "all", "Pad": "all others",
    "ProdOfOthers": "all first others", "QLinearConv": "all others", "QLinearMatMul": "all first others",
    "QuantizeLinear": "all others", "RNN": "all others", "ReduceSum": "all", "STFT": "all others",
    "SoftmaxCrossEntropyLoss": "all others", "StringNormalizer": "all", "StringSplit": "all", "Tokenizer": "all",
    "Trilu": "all others",
}
"""Operators that run one example after the other in some case, and where: this can only get less."""

REFUSED = {
    "Bernoulli", "Compress", "ConcatFromSequence", "Dropout", "Multinomial", "NonMaxSuppression", "NonZero", "Optional",
    "OptionalAdd", "OptionalGetElement", "OptionalHasElement", "OptionalZeros", "RandomNormalLike", "RandomUniformLike", "SequenceAdd", "SequenceAddAt", "SequenceAt",
    "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceExtents", "SequenceInsert", "SequenceLength",
    "SequenceZeros", "SplitToSequence", "Unique",
}
"""Operators that are refused in some case: random numbers without a word on them, ragged results, sequences."""

RAGGED_DERIVATIVES = {"RoiAlign"}
"""Operators whose derivatives have intermediate results that are as large as the data say: cells of a grid in each region."""

OPS = sorted(BY_OP)
BATCHED = sorted(name for name in OPS if any(subset(case, "all") for case in BY_OP[name]) and name not in REFUSED)


def typical(name: str, most: int = 2) -> list[Case]:
    """Return the first cases of an operator that take inputs of their own."""
    return [case for case in BY_OP[name] if subset(case, "all")][:most]


@pytest.mark.parametrize("name", OPS)
def test_many_examples_are_as_each(name: str) -> None:
    one_by_one, refused = set(), False
    for case in BY_OP[name]:
        for how in SUBSETS:
            try:
                if check_values(case, how):
                    one_by_one.add(how)
            except UnsupportedError:
                refused = True
    assert " ".join(sorted(one_by_one)) == ONE_BY_ONE.get(name, "")
    assert refused == (name in REFUSED)


@pytest.mark.parametrize("name", BATCHED)
def test_extents_that_only_the_run_can_tell(name: str) -> None:
    for case in BY_OP[name]:
        if case.symbolic:
            check_values(case, "all", symbolic=True)


@pytest.mark.parametrize("name", BATCHED)
def test_examples_that_are_more_samples(name: str) -> None:
    for case in BY_OP[name]:
        for how in ("all", "others"):
            check_rows(case, how)


@pytest.mark.parametrize("name", BATCHED)
def test_none_one_and_examples_of_examples(name: str) -> None:
    for case in typical(name):
        check_values(case, "all", count=0)
        check_values(case, "all", count=1)
        check_twice(case)


@pytest.mark.parametrize("name", sorted(set(BATCHED) - RAGGED_DERIVATIVES))
def test_derivatives_of_examples(name: str) -> None:
    for case in typical(name, 1):
        for kind in DERIVATIVES:
            check_derivative(case, kind)
        check_derivative_of_examples(case)


@pytest.mark.parametrize("name", BATCHED)
def test_programs_of_many_examples(name: str) -> None:
    for case in typical(name, 1):
        check_engine(case)


@pytest.mark.parametrize("name", BATCHED)
def test_examples_in_onnxruntime(name: str) -> None:
    for case in typical(name, 1):
        check_export(case)
