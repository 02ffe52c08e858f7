"""Operators of ai.onnx.ml: what they mean in onnxruntime, run as they are, is what the imported graph means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import flowgrad as fg
from flowgrad.exchange.adapters import ADAPTERS
from flowgrad.exchange.reader import read_onnx
from flowgrad.exchange.writer import write_onnx
from flowgrad.ir.errors import FlowgradError, LimitError, NotDifferentiableError, UnsupportedError, ValidationError
from flowgrad.ir.evaluate import evaluate
from flowgrad.ir.graph import Array
from tests.ml_models import TREE_ROWS, given_to, ml_model, tree_lists
from tests.onnx_models import info, onnxruntime_outputs

RNG = np.random.default_rng(7)
NAN = float("nan")
X: Array = RNG.standard_normal((6, 3)).astype(np.float32)
WORDS: Array = np.array([["a", "b"], ["", "q"], ["b", "b"]], object)
HOLES: Array = np.array([[1.0, NAN, 0.0], [0.0, 2.0, NAN]], np.float32)


def floats(*shape: int) -> list[float]:
    return [float(x) for x in RNG.standard_normal(shape).astype(np.float32).reshape(-1)]


TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")
Row = tuple[str, str, dict[str, Array], dict[str, Any], int, int]
"""Name, op, inputs, attributes, number of outputs, opset of the domain."""

KERNELS: dict[str, list[float]] = {"LINEAR": [0.0, 0.0, 3.0], "POLY": [0.5, 0.7, 3.0], "RBF": [0.4, 0.0, 3.0], "SIGMOID": [0.3, -0.2, 3.0]}


def classifier(classes: int, transform: str, **more: Any) -> dict[str, Any]:
    return {"coefficients": floats(classes, 3), "intercepts": floats(classes), "post_transform": transform,
            "classlabels_ints": [5, 7, 2][: max(classes, 2)], **more}


def machine(kernel: str, per_class: list[int], transform: str = "NONE", **more: Any) -> dict[str, Any]:
    classes, count = len(per_class), sum(per_class)
    return {"kernel_type": kernel, "kernel_params": KERNELS[kernel], "vectors_per_class": per_class, "post_transform": transform,
            "support_vectors": floats(count, 3), "coefficients": floats(classes - 1, count), "classlabels_ints": [4, 1, 8][:classes],
            "rho": floats(classes * (classes - 1) // 2), **more}


def probable(kernel: str, per_class: list[int], transform: str = "NONE") -> dict[str, Any]:
    pairs = len(per_class) * (len(per_class) - 1) // 2
    return machine(kernel, per_class, transform, prob_a=[-1.5] * pairs, prob_b=[0.2] * pairs)


def regressor(kernel: str, **more: Any) -> dict[str, Any]:
    return {"kernel_type": kernel, "kernel_params": KERNELS[kernel], "support_vectors": floats(4, 3), "coefficients": floats(4),
            "n_supports": 4, "rho": [0.3], **more}


LINEAR: list[Row] = [
    ("regressor", "LinearRegressor", {"x": X}, {"coefficients": floats(3), "intercepts": [0.5]}, 1, 1),
    ("regressor_without_intercepts", "LinearRegressor", {"x": X}, {"coefficients": floats(2, 3), "targets": 2}, 1, 1),
    *((f"regressor_{t}", "LinearRegressor", {"x": X}, {"coefficients": floats(2, 3), "targets": 2, "post_transform": t}, 1, 1)
      for t in TRANSFORMS),
    *((f"three_{t}", "LinearClassifier", {"x": X}, classifier(3, t), 2, 1) for t in TRANSFORMS),
    *((f"two_{t}", "LinearClassifier", {"x": X}, classifier(2, t), 2, 1) for t in TRANSFORMS),
    *((f"one_{t}", "LinearClassifier", {"x": X}, classifier(1, t), 2, 1) for t in TRANSFORMS),
    ("doubles", "LinearClassifier", {"x": X.astype(np.float64)}, classifier(3, "SOFTMAX"), 2, 1),
    ("integers", "LinearClassifier", {"x": (4 * X).astype(np.int64)}, classifier(3, "LOGISTIC"), 2, 1),
    ("probit", "LinearClassifier", {"x": np.array([[0.1], [0.35], [0.8]], np.float32)},
     {"coefficients": [1.0, 0.5], "intercepts": [0.0, 0.3], "classlabels_ints": [0, 1], "post_transform": "PROBIT"}, 2, 1),
    ("strings", "LinearClassifier", {"x": X},
     {"coefficients": floats(2, 3), "intercepts": floats(2), "classlabels_strings": ["no", "yes"]}, 2, 1),
]

MACHINES: list[Row] = [
    *((f"svr_{k}", "SVMRegressor", {"x": X}, regressor(k), 1, 1) for k in KERNELS),
    ("svr_many", "SVMRegressor", {"x": X}, {**regressor("RBF"), "support_vectors": floats(6000, 3), "n_supports": 6000,
                                            "coefficients": [c / 50 for c in floats(6000)]}, 1, 1),
    ("svr_one_class", "SVMRegressor", {"x": X}, regressor("RBF", one_class=1), 1, 1),
    ("svr_linear", "SVMRegressor", {"x": X}, {"coefficients": floats(3), "kernel_params": [0.0, 0.0, 3.0], "rho": [0.3]}, 1, 1),
    *((f"svc_{k}", "SVMClassifier", {"x": X}, machine(k, [2, 1, 2]), 2, 1) for k in KERNELS),
    *((f"svc_two_{t}", "SVMClassifier", {"x": X}, machine("RBF", [2, 2], t), 2, 1) for t in TRANSFORMS),
    *((f"svc_three_{t}", "SVMClassifier", {"x": X}, machine("RBF", [1, 2, 2], t), 2, 1) for t in TRANSFORMS),
    ("svc_probable", "SVMClassifier", {"x": X}, probable("RBF", [2, 2, 1]), 2, 1),
    ("svc_probable_softmax", "SVMClassifier", {"x": X}, probable("POLY", [2, 2, 1], "SOFTMAX"), 2, 1),
    ("svc_linear", "SVMClassifier", {"x": X}, {"coefficients": floats(3, 3), "rho": [0.2], "classlabels_strings": ["a", "b", "c"],
                                               "kernel_params": [0.0, 0.0, 3.0]}, 2, 1),
]

FEATURES: list[Row] = [
    ("scaler", "Scaler", {"x": X}, {"offset": floats(3), "scale": floats(3)}, 1, 1),
    ("scaler_for_all", "Scaler", {"x": X.astype(np.float64)}, {"offset": [0.5], "scale": [2.0]}, 1, 1),
    *((f"normalizer_{n}", "Normalizer", {"x": np.array([[3, -4, 1], [0, 0, 0], [-2, -1, -3]], np.float32)}, {"norm": n}, 1, 1)
      for n in ("MAX", "L1", "L2")),
    ("imputer_nan", "Imputer", {"x": HOLES}, {"imputed_value_floats": [7.0, 8.0, 9.0], "replaced_value_float": NAN}, 1, 1),
    ("imputer_zero", "Imputer", {"x": HOLES}, {"imputed_value_floats": [7.0], "replaced_value_float": 0.0}, 1, 1),
    ("imputer_integers", "Imputer", {"x": np.array([[3, 0]])}, {"imputed_value_int64s": [7, 8], "replaced_value_int64": 0}, 1, 1),
    ("binarizer", "Binarizer", {"x": np.array([[0.3, 0.30001, -1.0]], np.float32)}, {"threshold": 0.3}, 1, 1),
    ("extractor", "ArrayFeatureExtractor", {"x": X, "i": np.array([2, 0])}, {}, 1, 1),
    ("vectorizer", "FeatureVectorizer", {"a": X, "b": X[:, :2]}, {"inputdimensions": [3, 2]}, 1, 1),
    ("vectorizer_fits", "FeatureVectorizer", {"a": X, "b": X[:, :2]}, {"inputdimensions": [2, 4]}, 1, 1),
    ("one_hot_strings", "OneHotEncoder", {"x": WORDS}, {"cats_strings": ["b", "a", "c"]}, 1, 1),
    ("one_hot_integers", "OneHotEncoder", {"x": np.array([[3, 1], [7, 2]])}, {"cats_int64s": [1, 2, 3], "zeros": 1}, 1, 1),
    ("one_hot_floats", "OneHotEncoder", {"x": np.array([[3.0, 1.0]], np.float32)}, {"cats_int64s": [1, 2, 3], "zeros": 0}, 1, 1),
    ("mapper", "CategoryMapper", {"x": WORDS}, {"cats_strings": ["a", "b"], "cats_int64s": [3, 4], "default_int64": -7}, 1, 1),
    ("mapper_back", "CategoryMapper", {"x": np.array([3, 5])}, {"cats_strings": ["a", "b"], "cats_int64s": [3, 4]}, 1, 1),
    ("labels_old", "LabelEncoder", {"x": WORDS}, {"classes_strings": ["a", "b"], "default_int64": -5}, 1, 1),
    ("labels_old_back", "LabelEncoder", {"x": np.array([1, 0, 9])}, {"classes_strings": ["a", "b"]}, 1, 1),
    ("labels_floats", "LabelEncoder", {"x": np.array([1.0, 2.5], np.float32)},
     {"keys_floats": [2.5, 4.0], "values_strings": ["x", "y"], "default_string": "none"}, 1, 2),
    ("labels_integers", "LabelEncoder", {"x": np.array([1, 2])}, {"keys_int64s": [2, 1], "values_floats": [0.5, 0.25]}, 1, 2),
    ("labels_nan", "LabelEncoder", {"x": np.array([[NAN, 1.0]], np.float32)}, {"keys_floats": [NAN], "values_int64s": [3]}, 1, 4),
    ("labels_tensors", "LabelEncoder", {"x": WORDS}, {
        "keys_tensor": numpy_helper.from_array(np.array(["a", "b"], object)),
        "values_tensor": numpy_helper.from_array(np.array([1, 2], np.int16)),
        "default_tensor": numpy_helper.from_array(np.array([42], np.int16))}, 1, 4),
]

TREES: list[Row] = [
    ("trees", "TreeEnsembleRegressor", {"x": TREE_ROWS},
     tree_lists(n_targets=1, **given_to("target", [0] * 4, [1.0, 2.0, 4.0, 0.5]), base_values=[8.0]), 1, 1),
    *((f"trees_{how}", "TreeEnsembleRegressor", {"x": TREE_ROWS},
       tree_lists(n_targets=2, aggregate_function=how, **given_to("target", [0, 0, 0, 1] + [1, 1, 1, 0], floats(8))), 1, 1)
      for how in ("SUM", "AVERAGE", "MIN", "MAX")),
    ("trees_apart", "TreeEnsembleRegressor", {"x": TREE_ROWS},
     tree_lists(n_targets=2, **given_to("target", [0, 0, 0, 1], floats(4))), 1, 1),
    ("trees_doubles", "TreeEnsembleRegressor", {"x": TREE_ROWS.astype(np.float64)},
     tree_lists(n_targets=1, **given_to("target", [0] * 4, floats(4))), 1, 3),
    ("trees_softmax", "TreeEnsembleRegressor", {"x": TREE_ROWS},
     tree_lists(n_targets=2, post_transform="SOFTMAX", **given_to("target", [0, 0, 0, 1] + [1, 1, 1, 0], floats(8))), 1, 1),
    ("trees_missing", "TreeEnsembleRegressor", {"x": np.array([[NAN, 2.0], [1.0, NAN]], np.float32)},
     tree_lists(n_targets=1, nodes_missing_value_tracks_true=[1, 0, 0, 0, 0, 0],
                **given_to("target", [0] * 4, [1.0, 2.0, 4.0, 0.5])), 1, 1),
    *((f"trees_three_{t}", "TreeEnsembleClassifier", {"x": TREE_ROWS},
       tree_lists(classlabels_int64s=[3, 1, 2], post_transform=t, base_values=[0.1, 0.2, -0.3],
                  **given_to("class", [0] * 4 + [1] * 4 + [2] * 4, floats(12))), 2, 1) for t in TRANSFORMS),
    *((f"trees_two_{t}_{name}", "TreeEnsembleClassifier", {"x": TREE_ROWS},
       tree_lists(classlabels_strings=["no", "yes"], post_transform=t, **given_to("class", [0] * 4, weights)), 2, 1)
      for t in TRANSFORMS for name, weights in (("positive", [0.2, 0.3, 0.1, 0.3]), ("mixed", [1.0, -2.0, 0.5, -0.3]))),
    ("trees_base", "TreeEnsembleClassifier", {"x": TREE_ROWS},
     tree_lists(classlabels_int64s=[3, 1], post_transform="LOGISTIC", base_values=[0.7],
                **given_to("class", [0] * 4, [1.0, -2.0, 0.5, -0.3])), 2, 1),
    ("trees_new", "TreeEnsemble", {"x": TREE_ROWS}, {
        "n_targets": 2, "aggregate_function": 1, "post_transform": 0, "tree_roots": [0, 2], "nodes_featureids": [0, 1, 1],
        "nodes_splits": numpy_helper.from_array(np.array([0.55, 1.0, 0.0], np.float32)),
        "nodes_modes": numpy_helper.from_array(np.array([0, 3, 6], np.uint8)),
        "nodes_truenodeids": [0, 1, 3], "nodes_falsenodeids": [1, 2, 4], "nodes_trueleafs": [1, 1, 1],
        "nodes_falseleafs": [0, 1, 1], "leaf_targetids": [0, 1, 0, 1, 1],
        "leaf_weights": numpy_helper.from_array(np.array([1, 2, 4, 8, 16], np.float32)),
        "membership_values": numpy_helper.from_array(np.array([1.0, 5.0, NAN], np.float32))}, 1, 5),
]

ROWS = [*LINEAR, *MACHINES, *FEATURES, *TREES]


def same(got: Array, expected: Array) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    if got.dtype.kind == "f":
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    else:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("name", "op", "feeds", "attributes", "outputs", "version"), ROWS, ids=[r[0] for r in ROWS])
def test_what_a_file_means_in_onnxruntime_it_means_here(
    name: str, op: str, feeds: dict[str, Array], attributes: dict[str, Any], outputs: int, version: int
) -> None:
    proto = ml_model(op, feeds, attributes, outputs, version)
    expected = onnxruntime_outputs(proto, feeds)
    graph = read_onnx(proto)
    got = list(evaluate(graph, feeds).values())
    exported = write_onnx(graph)
    assert {n.domain for n in exported.graph.node} == {""}
    for mine, theirs, again in zip(got, expected, onnxruntime_outputs(exported, feeds), strict=True):
        same(mine, theirs)
        same(again, theirs)


def test_every_operator_of_the_domain_has_rows() -> None:
    assert {op for domain, op in ADAPTERS if domain == "ai.onnx.ml"} == {r[1] for r in ROWS} | {"ZipMap"}


SMOOTH = {"LinearRegressor", "LinearClassifier", "SVMRegressor", "SVMClassifier", "Scaler", "Normalizer", "Imputer",
          "FeatureVectorizer", "ArrayFeatureExtractor"}
FLAT = {"svr_one_class", "imputer_integers", "integers"}
SMOOTH_ROWS = [r for r in ROWS if r[1] in SMOOTH and r[0] not in FLAT]


@pytest.mark.parametrize(("name", "op", "feeds", "attributes", "outputs", "version"), SMOOTH_ROWS, ids=[r[0] for r in SMOOTH_ROWS])
def test_what_is_smooth_differentiates(
    name: str, op: str, feeds: dict[str, Array], attributes: dict[str, Any], outputs: int, version: int
) -> None:
    model = fg.load(ml_model(op, feeds, attributes, outputs, version))
    away = {k: np.where(a == 0, 0.25, np.nan_to_num(a, nan=0.5)).astype(a.dtype) if a.dtype.kind == "f" else a
            for k, a in feeds.items()}
    of = [v.name for v in model.outputs if v.dtype in ("float32", "float64")]
    result = fg.gradcheck(model, away, of, rtol=1e-6, atol=1e-7)
    assert result and result.checks, result


@pytest.mark.parametrize("row", [r for r in TREES if r[5] == 1], ids=lambda r: r[0])
def test_trees_are_steps(row: Row) -> None:
    name, op, feeds, attributes, outputs, version = row
    model = fg.load(ml_model(op, feeds, attributes, outputs, version))
    scores = model.outputs[-1].name
    with pytest.raises(NotDifferentiableError, match="TreeLeaves"):
        fg.vjp(model, scores)
    derivative = fg.vjp(model, scores, zero="allow")
    seed = np.ones_like(model(feeds)[scores])
    assert not derivative({**feeds, f"{scores}_grad": seed})["x_grad"].any()


def test_weights_of_leaves_are_parameters() -> None:
    attributes = tree_lists(n_targets=1, **given_to("target", [0] * 4, [1.0, 2.0, 4.0, 0.5]))
    model = fg.load(ml_model("TreeEnsembleRegressor", {"x": TREE_ROWS}, attributes))
    derivative = fg.vjp(model, wrt="params")
    (name,) = (v.name for v in derivative.outputs if v.name.endswith("weights_grad"))
    reached = derivative({"x": TREE_ROWS, "y0_grad": np.ones((4, 1), np.float32)})[name]
    assert reached.tolist() == [0, 2, 0, 1, 1, 4]  # how many rows end at each node


def test_probit_is_smooth_in_the_middle() -> None:
    """There runtimes divide nothing, and their formula is the square root of zero."""
    attributes = {"coefficients": [1.0], "post_transform": "PROBIT"}
    model = fg.load(ml_model("LinearRegressor", {"x": X[:1, :1]}, attributes))
    result = fg.vjp(model)({"x": np.full((1, 1), 0.5, np.float32), "y0_grad": np.ones((1, 1), np.float32)})
    assert result["y0"] == 0
    np.testing.assert_allclose(result["x_grad"], np.sqrt(2 * np.pi), rtol=1e-6)


# ---- ZipMap -------------------------------------------------------------------------------------------------------------


def zipped(labels: dict[str, Any]) -> Any:
    nodes = [helper.make_node("Softmax", ["x"], ["p"]), helper.make_node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", **labels)]
    key = TensorProto.STRING if "classlabels_strings" in labels else TensorProto.INT64
    value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    declared = helper.make_value_info("z", helper.make_sequence_type_proto(helper.make_map_type_proto(key, value)))
    graph = helper.make_graph(nodes, "zip", [info("x", ["N", 3])], [declared])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)], ir_version=8)


@pytest.mark.parametrize("labels", [{"classlabels_int64s": [4, 5, 6]}, {"classlabels_strings": ["a", "b", "c"]}], ids=["int", "str"])
def test_zip_map_leaves_its_scores(labels: dict[str, Any]) -> None:
    proto, notes = zipped(labels), list[str]()
    graph = read_onnx(proto, notes=notes)
    (got,) = evaluate(graph, {"x": X}).values()
    import onnxruntime as ort

    (rows,) = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": X})
    assert [list(row) for row in rows] == [next(iter(labels.values()))] * len(X)
    np.testing.assert_allclose(got, [list(row.values()) for row in rows], rtol=1e-6)
    (note,) = notes
    assert all(repr(label) in note for label in next(iter(labels.values())))


# ---- what is refused ----------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, str, dict[str, Array], dict[str, Any], int, str]] = [
    ("one_score", "LinearRegressor", {"x": X}, {"coefficients": floats(3), "post_transform": "LOGISTIC"}, 1, "runtimes skip"),
    ("probit_of_one", "LinearClassifier", {"x": X}, classifier(1, "PROBIT"), 2, "no second column"),
    ("svr_transform", "SVMRegressor", {"x": X}, regressor("RBF", post_transform="SOFTMAX"), 1, "runtimes skip"),
    ("svc_linear_two", "SVMClassifier", {"x": X}, {"coefficients": floats(2, 3), "rho": [0.2], "classlabels_ints": [0, 1]}, 2,
     "fewer than three classes"),
    ("two_bases", "TreeEnsembleClassifier", {"x": TREE_ROWS},
     tree_lists(classlabels_int64s=[0, 1], base_values=[0.1, 0.2], **given_to("class", [0] * 4, floats(4))), 2, "base_values"),
    ("second_class", "TreeEnsembleClassifier", {"x": TREE_ROWS},
     tree_lists(classlabels_int64s=[0, 1], **given_to("class", [1] * 4, floats(4))), 2, "class 1 alone"),
    ("two_scores", "TreeEnsembleClassifier", {"x": TREE_ROWS},
     tree_lists(classlabels_int64s=[0, 1], **given_to("class", [0] * 4 + [1] * 4, floats(8))), 2, "weights of both"),
    ("vectors", "FeatureVectorizer", {"a": X[:, 0], "b": X}, {"inputdimensions": [1, 3]}, 1, "no matrix"),
    ("cube", "LinearRegressor", {"x": X[None]}, {"coefficients": floats(3)}, 1, "rank 3"),
]


@pytest.mark.parametrize(("name", "op", "feeds", "attributes", "outputs", "match"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_runtimes_and_the_standard_read_differently_is_refused(
    name: str, op: str, feeds: dict[str, Array], attributes: dict[str, Any], outputs: int, match: str
) -> None:
    with pytest.raises(UnsupportedError, match=match):
        read_onnx(ml_model(op, feeds, attributes, outputs))


@pytest.mark.parametrize(("ids", "base", "is_read"), [
    ([0] * 4 + [1] * 4, [], True), ([0] * 4 + [1] * 4, [0.5, 0.5], False), ([0, 1, 1, 0], [], False),
])
def test_two_scores_are_read_where_runtimes_read_them_alike(ids: list[int], base: list[float], is_read: bool) -> None:
    """Of two classes that both have weights onnxruntime compares one score with 0; without the label that does not count."""
    weights = [float(k) for k in range(len(ids))]
    more = {"base_values": base} if base else {}
    proto = ml_model("TreeEnsembleClassifier", {"x": TREE_ROWS},
                     tree_lists(classlabels_int64s=[0, 1], **given_to("class", ids, weights), **more), 2)
    proto.graph.node[0].output[0] = ""
    del proto.graph.output[0]
    if not is_read:
        with pytest.raises(UnsupportedError, match="weights of both"):
            read_onnx(proto)
        return
    (scores,) = evaluate(read_onnx(proto), {"x": TREE_ROWS}).values()
    assert scores.shape == (len(TREE_ROWS), 2)
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], 8)  # 4 at the leaf of each of two trees


@pytest.mark.parametrize("version", [0, 6])
def test_opsets_that_are_not_known(version: int) -> None:
    with pytest.raises(UnsupportedError, match=f"opset {version} of ai.onnx.ml"):
        read_onnx(ml_model("Binarizer", {"x": X}, {}, version=version))


LEAVES = given_to("target", [0] * 4, [1.0, 2.0, 4.0, 0.5])
BROKEN: list[tuple[str, str, dict[str, Any], str]] = [
    ("circle", "TreeEnsembleRegressor", tree_lists(nodes_truenodeids=[1, 0, 0, 0, 0, 0], **LEAVES), "reached twice"),
    ("itself", "TreeEnsembleRegressor", tree_lists(nodes_truenodeids=[0, 0, 3, 0, 0, 0], **LEAVES), "reached twice"),
    ("shared", "TreeEnsembleRegressor", tree_lists(nodes_truenodeids=[2, 0, 3, 0, 0, 0], **LEAVES), "reached twice"),
    ("nowhere", "TreeEnsembleRegressor", tree_lists(nodes_falsenodeids=[9, 0, 4, 0, 0, 0], **LEAVES), "no node"),
    ("negative", "TreeEnsembleRegressor", tree_lists(nodes_falsenodeids=[-1, 0, 4, 0, 0, 0], **LEAVES), "no node"),
    ("huge", "TreeEnsembleRegressor", tree_lists(nodes_falsenodeids=[2**62, 0, 4, 0, 0, 0], **LEAVES), "no node"),
    ("twice", "TreeEnsembleRegressor", tree_lists(nodes_nodeids=[0, 1, 2, 3, 3, 0], **LEAVES), "twice"),
    ("feature", "TreeEnsembleRegressor", tree_lists(nodes_featureids=[-1, 0, 1, 0, 0, 0], **LEAVES), "feature -1"),
    ("mode", "TreeEnsembleRegressor", tree_lists(nodes_modes=["LEAF"] * 5 + ["BRANCH"], **LEAVES), "unknown"),
    ("lengths", "TreeEnsembleRegressor", tree_lists(nodes_values=[0.0] * 3, **LEAVES), "lengths"),
    ("torn", "TreeEnsembleRegressor", tree_lists(nodes_treeids=[0, 0, 7, 0, 0, 0], **LEAVES), "twice"),
    ("target", "TreeEnsembleRegressor", tree_lists(**given_to("target", [0, 0, 0, 3], floats(4))), "target .3. of 1"),
    ("targets", "TreeEnsembleRegressor", tree_lists(n_targets=2**40, **LEAVES), "targets for 4 weights"),
    ("inner", "TreeEnsembleRegressor", tree_lists(target_treeids=[0], target_nodeids=[2], target_ids=[0], target_weights=[1.0]),
     "no leaf"),
    ("base", "TreeEnsembleRegressor", tree_lists(base_values=[1.0, 2.0], **LEAVES), "base_values"),
    ("aggregate", "TreeEnsembleRegressor", tree_lists(aggregate_function="MEAN", **LEAVES), "MEAN"),
    ("kind", "LinearRegressor", {"coefficients": [1, 2]}, "type INTS"),
    ("coefficients", "LinearRegressor", {"coefficients": floats(3), "targets": 2}, "3 coefficients for 2 targets"),
    ("features", "LinearRegressor", {"coefficients": floats(5)}, "expected 5 features"),
    ("no_labels", "LinearClassifier", {"coefficients": floats(2, 2), "intercepts": floats(2)}, "one of"),
    ("labels", "LinearClassifier", {"coefficients": floats(2, 2), "intercepts": floats(2), "classlabels_ints": [1]}, "1 labels"),
    ("transform", "LinearRegressor", {"coefficients": floats(2), "post_transform": "TANH"}, "TANH"),
    ("vectors", "SVMRegressor", {"coefficients": floats(3), "n_supports": 2, "rho": [0.0], "support_vectors": floats(4)},
     "3 coefficients"),
    ("kernel", "SVMRegressor", {"coefficients": floats(2), "n_supports": 2, "rho": [0.0], "support_vectors": floats(4),
                                "kernel_type": "COSINE"}, "COSINE"),
    ("per_class", "SVMClassifier", {"coefficients": floats(2), "rho": [0.0], "support_vectors": floats(4),
                                    "vectors_per_class": [3, -1], "classlabels_ints": [0, 1]}, "vectors_per_class"),
    ("columns", "Scaler", {"offset": floats(3)}, "3 entries of offset"),
    ("norm", "Normalizer", {"norm": "L3"}, "L3"),
    ("holes", "Imputer", {}, "imputed_value_floats is missing"),
    ("keys", "LabelEncoder", {"keys_int64s": [1, 2], "values_int64s": [3, 4]}, "the keys are of int64"),
    ("values", "LabelEncoder", {"keys_floats": [1.0, 2.0], "values_int64s": [3]}, "2 keys for 1 values"),
    ("categories", "OneHotEncoder", {"cats_int64s": [1, 1]}, "twice"),
]


@pytest.mark.parametrize(("name", "op", "attributes", "match"), BROKEN, ids=[f"{r[1]}-{r[0]}" for r in BROKEN])
def test_what_does_not_fit_together_is_named(name: str, op: str, attributes: dict[str, Any], match: str) -> None:
    outputs = 2 if op.endswith("Classifier") else 1
    with pytest.raises(ValidationError, match=match):
        read_onnx(ml_model(op, {"x": TREE_ROWS}, attributes, outputs))


@pytest.mark.parametrize(("op", "attributes"), [
    ("Imputer", {"imputed_value_int64s": [2**40]}),
    ("LabelEncoder", {"keys_tensor": numpy_helper.from_array(np.array([2**40])), "values_int64s": [0]}),
])
def test_numbers_do_not_wrap(op: str, attributes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=op):
        read_onnx(ml_model(op, {"x": np.array([[0, 1]], np.int32)}, attributes, version=4))


def test_trees_that_read_features_which_are_not_there_fail_by_name() -> None:
    attributes = tree_lists(**{**LEAVES, "nodes_featureids": [0, 0, 2, 0, 0, 0]})
    graph = read_onnx(ml_model("TreeEnsembleRegressor", {"x": TREE_ROWS}, attributes))
    with pytest.raises(FlowgradError, match="feature 2 of 2"):
        evaluate(graph, {"x": TREE_ROWS})


def test_unknown_categories_fail_where_they_must() -> None:
    graph = read_onnx(ml_model("OneHotEncoder", {"x": WORDS}, {"cats_strings": ["a", "b"], "zeros": 0}))
    with pytest.raises(FlowgradError, match="out of bounds"):
        evaluate(graph, {"x": WORDS})


def test_trees_may_not_be_deeper_than_any_run_should_be() -> None:
    count = 10_001
    ids = list(range(2 * count + 1))
    lists = {
        "nodes_treeids": [0] * len(ids), "nodes_nodeids": ids, "nodes_featureids": [0] * len(ids), "nodes_values": [0.0] * len(ids),
        "nodes_modes": ["BRANCH_LEQ", "LEAF"] * count + ["LEAF"], "nodes_truenodeids": [i + 1 for i in ids],
        "nodes_falsenodeids": [i + 2 for i in ids], "target_treeids": [0], "target_nodeids": [1], "target_ids": [0],
        "target_weights": [1.0],
    }
    with pytest.raises(LimitError, match="deeper"):
        read_onnx(ml_model("TreeEnsembleRegressor", {"x": TREE_ROWS}, lists))
