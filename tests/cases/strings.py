"""Rows for the operators on strings, and for those of any element type with strings."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.graph import Array
from tests.op_cases import Case, In, const, fixed


def words(data: Any) -> In:
    """Given strings, fed at run time."""
    return fixed(np.array(data, object))


def normalized(*expected: str, shape: tuple[int, ...] = (-1,)) -> Any:
    return lambda x, **attributes: np.array(expected, object).reshape(shape)


DAYS = ["monday", "tuesday", "MONDAY", "Friday"]
MAIL = ["a@b.org", "x.y@site.org", "no", "", "a@b.org\n", "é@b.org"]

STRINGS = [
    Case("StringConcat", [words(["ab", "", "ß"]), words(["c", "d", "€"])]),
    Case("StringConcat", [words([["a"], ["b"]]), words(["x", "y", "z"])], name="broadcast"),
    Case("StringConcat", [words("a"), words("b")], name="scalars"),
    Case("StringConcat", [words(np.empty((0, 2))), words(["x", "y"])], name="empty"),
    Case("StringSplit", [words(["a.b.c", "d", "", "..", "é.ß"])], {"delimiter": "."}, outputs=2),
    Case("StringSplit", [words([["a  b", " c "], ["", "\td e f"]])], outputs=2, name="white-space"),
    Case("StringSplit", [words(["a b c d", "e"])], {"delimiter": "", "maxsplit": 2}, outputs=2, name="at-most"),
    Case("StringSplit", [words(["ab", "ab"])], {"delimiter": "ab", "maxsplit": 0}, outputs=2, name="no-split"),
    Case("StringSplit", [words(np.empty((2, 0)))], {"delimiter": "-"}, outputs=2, name="empty"),
    Case("StringSplit", [words("a-b")], {"delimiter": "-"}, outputs=2, name="scalar",
         expected=lambda x, delimiter: (np.array(["a", "b"], object), np.array(2))),
    Case("StringNormalizer", [words(DAYS)]),
    Case("StringNormalizer", [words(DAYS)], {"stopwords": ("monday",), "is_case_sensitive": 1, "case_change_action": "UPPER"},
         name="upper"),
    Case("StringNormalizer", [words(DAYS)], {"stopwords": ("Monday",), "case_change_action": "LOWER"}, name="any-case",
         expected=normalized("tuesday", "friday")),
    Case("StringNormalizer", [words([DAYS])], {"stopwords": ("monday", "FRIDAY")}, name="row",
         expected=normalized("tuesday", shape=(1, -1))),
    Case("StringNormalizer", [words(["a", "", "A"])], {"stopwords": ("a",)}, name="keeps-empty", expected=normalized("")),
    Case("StringNormalizer", [words([["a", "a"]])], {"stopwords": ("a",)}, name="none-left", expected=normalized("", shape=(1, 1))),
    Case("StringNormalizer", [words([])], name="empty", expected=normalized("")),
    Case("Tokenizer", [words(["a bc", "", "d"])], {"separators": (" ",), "mark": 1, "pad_value": "#"}, reference=False,
         expected=lambda x, **_: np.array([["\x02", "a", "bc", "\x03"], ["\x02", "\x03", "#", "#"], ["\x02", "d", "\x03", "#"]], object)),
    Case("Tokenizer", [words([["aab b"], ["xx"]])], {"tokenexp": "a+|b", "mincharnum": 1}, reference=False, name="pattern",
         expected=lambda x, **_: np.array([[["aa", "b", "b"]], [["", "", ""]]], object)),
    Case("RegexFullMatch", [words([MAIL, MAIL])], {"pattern": r"[\w.]+@\w+\.org"}, expected=lambda x, pattern: np.array(
        [[True, True, False, False, False, False]] * 2)),
    Case("RegexFullMatch", [words(["", "a", "aa"])], {"pattern": ""}, name="empty-pattern"),
    Case("RegexFullMatch", [words("www.a.com")], {"pattern": r"www\.[\w.-]+\.\bcom\b"}, name="scalar"),
    Case("RegexFullMatch", [words(np.empty((0, 2)))], {"pattern": "a"}, name="empty",
         expected=lambda x, pattern: np.zeros((0, 2), bool)),
]

GRAMS = {"ngram_counts": (0, 4), "ngram_indexes": (0, 1, 2, 3, 4, 5, 6), "mode": "TF"}
NUMBERS = {**GRAMS, "pool_int64s": (2, 3, 5, 4, 5, 6, 7, 8, 6, 7)}
TEXTS = {**GRAMS, "pool_strings": ("a", "b", "c", "d", "b", "c", "a", "a", "c", "d")}
ROWS = [[1, 1, 3, 3, 3, 7], [8, 6, 7, 5, 6, 8]]
WEIGHTS = (0.5, 2.0, 3.0, 1.5, 4.0, 0.25, 7.0)


def grams(lengths: tuple[int, int], skips: int, **more: Any) -> dict[str, Any]:
    return {"min_gram_length": lengths[0], "max_gram_length": lengths[1], "max_skip_count": skips, **more}


COUNTS = [
    Case("TfIdfVectorizer", [fixed(ROWS[1], "int32")], grams((1, 2), 0, **NUMBERS)),
    Case("TfIdfVectorizer", [fixed(ROWS, "int64")], grams((2, 2), 0, **NUMBERS), name="pairs"),
    Case("TfIdfVectorizer", [fixed(ROWS, "int64")], grams((2, 2), 5, **NUMBERS), name="pairs-apart"),
    Case("TfIdfVectorizer", [fixed(ROWS, "int64")], grams((1, 2), 5, **NUMBERS), name="both-apart"),
    Case("TfIdfVectorizer", [fixed(ROWS, "int64")], grams((1, 1), 5, **NUMBERS), name="singles"),
    Case("TfIdfVectorizer", [words([["a", "b", "c", "a"], ["a", "a", "a", "x"]])], grams((1, 2), 1, **TEXTS), name="words"),
    Case("TfIdfVectorizer", [words(["b", "c", "d", "b", "c"])],
         grams((1, 2), 0, **{**TEXTS, "mode": "TFIDF", "weights": WEIGHTS}), name="scaled"),
    Case("TfIdfVectorizer", [words([["b", "c"], ["b", "b"]])],
         grams((1, 2), 0, **{**TEXTS, "mode": "IDF", "weights": WEIGHTS}), name="once"),
    Case("TfIdfVectorizer", [words([["b", "b"]])], grams((1, 2), 0, **{**TEXTS, "mode": "IDF"}), name="no-weights",
         expected=lambda x, **attributes: np.array([[0, 1, 0, 0, 0, 0, 0]], np.float32)),
    Case("TfIdfVectorizer", [words(np.empty((2, 0)))], grams((1, 2), 0, **TEXTS), name="empty"),
    Case("TfIdfVectorizer", [fixed(ROWS, "int64")], grams((1, 3), 1, mode="TF", ngram_counts=(0, 2, 2),
         ngram_indexes=(2, 0, 1), pool_int64s=(3, 7, 3, 3, 7)), name="triples-permuted"),
]

MASK = const([[True, False, True]])
NAMES: Array = np.array([["b", "é"], ["", "c"], ["a", "a"]], object)

ANY_TYPE = [
    Case("Identity", [words(NAMES)], name="strings"),
    Case("Equal", [words(NAMES), words("a")], name="strings"),
    Case("Where", [MASK, words(["x", "y", "z"]), words([["p"], ["q"]])], name="strings"),
    Case("Concat", [words(NAMES), words(NAMES)], {"axis": 1}, name="strings"),
    Case("Gather", [words(NAMES), const([2, 0])], name="strings"),
    Case("GatherElements", [words(NAMES), const([[1, 0]])], name="strings"),
    Case("GatherND", [words(NAMES), const([[1, 0], [2, 1]])], name="strings"),
    Case("ScatterElements", [words(NAMES), const([[1, 0]]), words([["x", "y"]])], name="strings"),
    Case("ScatterND", [words(NAMES), const([[1]]), words([["x", "y"]])], name="strings"),
    Case("Reshape", [words(NAMES), const([2, 3])], name="strings"),
    Case("Flatten", [words(NAMES)], name="strings"),
    Case("Squeeze", [words([NAMES]), const([0])], name="strings"),
    Case("Unsqueeze", [words(NAMES), const([1])], name="strings"),
    Case("Transpose", [words(NAMES)], {"perm": (1, 0)}, name="strings"),
    Case("Slice", [words(NAMES), const([2]), const([0]), const([0]), const([-1])], name="strings"),
    Case("Split", [words(NAMES), const([1, 2])], outputs=2, name="strings"),
    Case("Expand", [words("a"), const([2, 2])], name="strings"),
    Case("Tile", [words(["a", "b"]), const([2])], name="strings"),
    Case("Pad", [words(NAMES), const([0, 1, 1, 0]), words("-")], name="strings"),
    Case("Pad", [words(NAMES), const([0, 1, 1, 0])], name="strings-empty",
         expected=lambda x, pads: np.pad(x, [(0, 1), (1, 0)], constant_values="")),
    Case("Pad", [words(NAMES), const([0, 1, 1, 0])], {"mode": "edge"}, name="strings-edge"),
    Case("CenterCropPad", [words(NAMES), const([2, 4])], name="strings",
         expected=lambda x, shape: np.array([["", "b", "é", ""], ["", "", "c", ""]], object)),
    Case("Trilu", [words(NAMES)], name="strings", expected=lambda x: np.array([["b", "é"], ["", "c"], ["", ""]], object)),
    Case("Trilu", [words(NAMES), const(-1)], {"upper": 0}, name="strings-below",
         expected=lambda x, k, upper: np.array([["", ""], ["", ""], ["a", "a"]], object)),
    Case("Compress", [words(NAMES), const([True, False, True])], {"axis": 0}, name="strings"),
    Case("Unique", [words(NAMES)], outputs=4, name="strings"),
    Case("Unique", [words(NAMES)], {"sorted": 0}, outputs=4, name="strings-unsorted", reference=False),
    Case("ReverseSequence", [words(NAMES), const([3, 1])], name="strings"),
    Case("OneHot", [fixed([1, 0]), const(2), words(["off", "on"])], name="strings",
         expected=lambda indices, depth, values, **attributes: np.array([["off", "on"], ["on", "off"]], object)),
    Case("Shape", [words(NAMES)], name="strings"),
    Case("Size", [words(NAMES)], name="strings"),
    Case("NonZero", [words(["", "a"])], name="strings", expected=lambda x: np.array([[1]])),
    Case("DepthToSpace", [words(np.array([list("abcd")]).reshape(1, 4, 1, 1))], {"blocksize": 2}, name="strings"),
    Case("SpaceToDepth", [words(np.array([list("abcd")]).reshape(1, 1, 2, 2))], {"blocksize": 2}, name="strings"),
]

CASES: list[Case] = [*STRINGS, *COUNTS, *ANY_TYPE]
