"""What no graph may say: absurd counts, ambiguous numbers, texts that pass their limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import LimitError, LoadError, ValidationError
from flowgrad.ir.graph import Graph
from flowgrad.ir.limits import Limits
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.text import format_graph
from flowgrad.ir.types import BOOL, FLOAT32, INT64, Type
from flowgrad.model import load


@pytest.mark.parametrize("count", [2**62, -1, 0, 1])
@pytest.mark.parametrize("shape", [(4,), None])
def test_a_split_has_a_sane_number_of_pieces(count: int, shape: tuple[int, ...] | None) -> None:
    graph = Graph("split")
    x = graph.add_input("x", Type(FLOAT32, shape))
    with pytest.raises(ValidationError, match="pieces"):
        Builder(graph).add_several("Split", [x], {"num_outputs": count}, outputs=2)


def test_the_kernel_of_split_counts_too() -> None:
    with pytest.raises(ValidationError, match="pieces"):
        opdef("Split").kernel(np.ones(3), num_outputs=2**62, count=2)


@pytest.mark.parametrize("limits", [Limits(file_bytes=60), Limits(nodes=1)], ids=["file_bytes", "nodes"])
def test_texts_are_loaded_within_limits(tmp_path: Path, limits: Limits) -> None:
    graph = Graph("text")
    b = Builder(graph)
    graph.add_output(b.Neg(b.Neg(graph.add_input("x", Type(FLOAT32, (2,))))))
    path = tmp_path / "model.txt"
    path.write_text(format_graph(graph))
    assert len(load(path).graph) == len(load(path.read_bytes()).graph)
    for source in (path, path.read_bytes()):
        with pytest.raises(LimitError):
            load(source, limits=limits)


def test_a_text_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_bytes(b"graph \xff\xfe")
    for source in (path, path.read_bytes()):
        with pytest.raises(LoadError, match="not a text"):
            load(source)


def test_a_sparse_giant_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    with path.open("wb") as file:
        file.write(b"graph ")
        file.truncate(2**40)
    with pytest.raises(LimitError, match="file_bytes"):
        load(path)


def test_a_number_takes_the_dtype_of_the_first_float() -> None:
    graph = Graph("where")
    b = Builder(graph)
    mask, x = graph.add_input("mask", Type(BOOL, (2,))), graph.add_input("x", Type(FLOAT32, (2,)))
    assert b.Where(mask, x, 0.5).type.dtype == FLOAT32
    assert b.Where(mask, 0.5, x).producer.input(1).constant == np.float32(0.5)
    count = graph.add_input("count", Type(INT64, (2,)))
    with pytest.raises(ValidationError, match="float dtype"):
        b.Add(count, 0.5)
    with pytest.raises(ValidationError, match="float dtype"):
        b.Where(mask, 0.5, 1.5)
