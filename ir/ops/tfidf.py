"""TfIdfVectorizer: how often n-grams of a vocabulary stand in rows of words or numbers. Counts: no cotangent passes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flowgrad.ir.batching import BatchBuilder, again, looped, within_batch
from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.limits import check_scratch
from flowgrad.ir.ops.registry import Trait, attr, op
from flowgrad.ir.types import FLOAT32, Type

MODES = ("TF", "IDF", "TFIDF")


class Vocabulary(NamedTuple):
    """The n-grams as a trie: from a state and a token to the next state; ``column`` of a state, -1 where none ends."""

    tokens: dict[Any, int]
    edges: dict[tuple[int, int], int]
    columns: tuple[int, ...]


@functools.lru_cache(maxsize=16)
def vocabulary(
    pool: tuple[Any, ...], counts: tuple[int, ...], indexes: tuple[int, ...], shortest: int, longest: int
) -> Vocabulary:
    """Return the trie of the n-grams whose lengths count. Raises ValueError for attributes that do not fit together."""
    bounds = (*counts, len(pool))
    if not counts or bounds[0] != 0 or any(not 0 <= a <= b for a, b in zip(bounds, bounds[1:], strict=False)):
        raise ValueError(f"ngram_counts {list(counts)[:8]} do not divide a pool of {len(pool)}")
    grams: list[tuple[Any, ...]] = []
    for size, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False), 1):
        if (end - start) % size:
            raise ValueError(f"{end - start} items of the pool do not make {size}-grams")
        grams += [pool[at : at + size] for at in range(start, end, size)]
    if len(grams) != len(indexes) or min(indexes, default=0) < 0:
        raise ValueError(f"{len(grams)} n-grams with {len(indexes)} ngram_indexes")
    tokens: dict[Any, int] = {}
    edges: dict[tuple[int, int], int] = {}
    columns = [-1]
    for gram, column in zip(grams, indexes, strict=True):
        if not shortest <= len(gram) <= longest:
            continue
        state = 0
        for token in gram:
            key = state, tokens.setdefault(token, len(tokens))
            if key not in edges:
                edges[key] = len(columns)
                columns.append(-1)
            state = edges[key]
        columns[state] = column
    return Vocabulary(tokens, edges, tuple(columns))


@op("TfIdfVectorizer", since=9, traits=(Trait.ZERO,))
def tf_idf_vectorizer(
    x: Array, *, max_gram_length: int, max_skip_count: int, min_gram_length: int, mode: str, ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int], pool_int64s: Sequence[int] = (), pool_strings: Sequence[str] = (),
    weights: Sequence[float] = (),
) -> Array:
    """Return counts of n-grams by row. ``weights`` are those of the columns of the result, as runtimes read them."""
    found = vocabulary(tuple(pool_strings or pool_int64s), tuple(ngram_counts), tuple(ngram_indexes), min_gram_length,
                       max_gram_length)
    rows = x if x.ndim == 2 else x.reshape(1, -1)
    look_up = found.tokens.get
    tokens = np.array([look_up(t, -1) for t in rows.reshape(-1).tolist()], np.int64).reshape(rows.shape)
    width = max(ngram_indexes, default=-1) + 1
    check_scratch(4 * width * rows.shape[0], "TfIdfVectorizer")
    result = np.zeros((rows.shape[0], width), np.float32)
    shortest = min_gram_length
    for skip in range(1, max_skip_count + 2):
        _count(result, tokens, found, skip, shortest, max_gram_length)
        shortest = max(shortest, 2)  # single items are counted once
        if shortest > max_gram_length or skip * (shortest - 1) >= tokens.shape[1]:
            break
    scale = np.asarray(weights[:width], np.float32) if weights and mode != "TF" else np.float32(1)
    result = (np.minimum(result, 1) if mode == "IDF" else result) * scale
    return result.reshape(*x.shape[:-1], width) if x.ndim else result.reshape(width)


def _count(result: Array, tokens: Array, found: Vocabulary, skip: int, shortest: int, longest: int) -> None:
    """Add the n-grams whose items stand ``skip`` apart, all rows at once, one more item of each at a time."""
    columns = np.array(found.columns)
    keys = np.array([s * (len(found.tokens) + 1) + t for s, t in found.edges], np.int64)
    order = np.argsort(keys)
    keys, targets = keys[order], np.array(list(found.edges.values()), np.int64)[order]
    row, place = np.nonzero(tokens >= 0)
    fits = place + skip * (shortest - 1) < tokens.shape[1]
    row, place = row[fits], place[fits]
    state = np.zeros(len(row), np.int64)
    for size in range(1, longest + 1):
        if not len(row) or not len(keys):
            return
        key = state * (len(found.tokens) + 1) + tokens[row, place]
        at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        hit = (keys[at] == key) & (tokens[row, place] >= 0)
        row, place, state = row[hit], place[hit], targets[at[hit]]
        ends = columns[state] >= 0
        if size >= shortest:
            np.add.at(result, (row[ends], columns[state[ends]]), np.float32(1))
        place = place + skip
        inside = place < tokens.shape[1]
        row, place, state = row[inside], place[inside], state[inside]


@tf_idf_vectorizer.types
def _(node: Node) -> Type:
    x, indexes = node.input(0).type, tuple(attr(node, "ngram_indexes"))
    strings, integers = tuple(attr(node, "pool_strings")), tuple(attr(node, "pool_int64s"))
    width = max(indexes, default=-1) + 1
    reason = ""
    if attr(node, "mode") not in MODES:
        reason = f"mode {attr(node, 'mode')!r} is none of {', '.join(MODES)}"
    elif bool(strings) == bool(integers) or bool(strings) != (x.dtype.kind == "string"):
        reason = f"one pool is needed, of what the input holds, {x.dtype.name}"
    elif attr(node, "max_skip_count") < 0 or attr(node, "min_gram_length") < 1:
        reason = "lengths of n-grams start at 1, skips at 0"
    elif attr(node, "weights") and attr(node, "mode") != "TF" and len(attr(node, "weights")) < width:
        reason = f"{len(attr(node, 'weights'))} weights for {width} columns"
    elif x.rank is not None and x.rank > 2:
        reason = f"expected the shape [C] or [N, C], got {x!r}"
    if reason:
        raise ValidationError(f"TfIdfVectorizer: {reason}", code="attribute", where=describe(node))
    try:
        vocabulary(strings or integers, tuple(attr(node, "ngram_counts")), indexes, attr(node, "min_gram_length"),
                   attr(node, "max_gram_length"))
    except ValueError as error:
        raise ValidationError(f"TfIdfVectorizer: {error}", code="attribute", where=describe(node)) from error
    return Type(FLOAT32, None if x.shape is None else (*x.shape[:-1], width))


@tf_idf_vectorizer.batch
def _(b: BatchBuilder, node: Node, x: Value) -> Any:
    """More rows; a row by itself is one of many then."""
    rank = node.input(0).type.rank
    return again(b, node, [x]) if rank == 1 else within_batch(0)(b, node, x) if rank == 2 else looped(b, node, x)
