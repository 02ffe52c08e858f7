"""from_sklearn: values of the pipeline, derivatives beside its differences, refusals by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.errors import InputError, NotDifferentiableError

pytest.importorskip("skl2onnx")
linear_model = pytest.importorskip("sklearn.linear_model")
svm = pytest.importorskip("sklearn.svm")
neural_network = pytest.importorskip("sklearn.neural_network")
ensemble = pytest.importorskip("sklearn.ensemble")
make_pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline
StandardScaler = pytest.importorskip("sklearn.preprocessing").StandardScaler

pytestmark = pytest.mark.filterwarnings("ignore")
X: Any = np.random.default_rng(0).standard_normal((90, 4))
CLASSES = np.argmax(X[:, :3] + 0.3 * X[:, 1:], axis=1)
ESTIMATORS = [
    pytest.param(linear_model.LogisticRegression(), "predict_proba", id="logistic"),
    pytest.param(svm.SVC(kernel="rbf"), "decision_function", id="svc"),
    pytest.param(neural_network.MLPClassifier((8,), max_iter=30, random_state=0), "predict_proba", id="mlp"),
    pytest.param(linear_model.Ridge(), "predict", id="ridge"),
    pytest.param(svm.SVR(), "predict", id="svr"),
]


@pytest.mark.parametrize(("estimator", "method"), ESTIMATORS)
def test_values_and_derivatives_are_those_of_the_pipeline(estimator: Any, method: str) -> None:
    pipeline = make_pipeline(StandardScaler(), estimator).fit(X, CLASSES)
    model = fg.from_sklearn(pipeline)
    name = [o.name for o in model.outputs if o.dtype == "float32"][-1]
    rows: Any = X[:7].astype(np.float32)
    value = getattr(pipeline, method)(rows)
    found = model(X=rows)[name]
    np.testing.assert_allclose(found.reshape(value.shape), value, rtol=1e-4, atol=1e-5)
    weights = np.asarray(np.random.default_rng(1).standard_normal(found.shape), np.float32)
    direction = np.random.default_rng(2).standard_normal(rows.shape)
    slope = (fg.vjp(model, of=name, wrt="X")({"X": rows, f"{name}_grad": weights})["X_grad"] * direction).sum()
    high, low = (getattr(pipeline, method)(rows + s * 1e-5 * direction) for s in (1, -1))
    np.testing.assert_allclose(slope, ((high - low).reshape(weights.shape) * weights).sum() / 2e-5, rtol=1e-3, atol=1e-3)


def test_trees_are_steps() -> None:
    model = fg.from_sklearn(ensemble.RandomForestClassifier(3, random_state=0).fit(X, CLASSES))
    with pytest.raises(NotDifferentiableError, match="TreeLeaves"):
        fg.vjp(model, of="probabilities", wrt="X")


def test_what_is_not_fitted_is_refused() -> None:
    with pytest.raises(InputError, match="is not fitted"):
        fg.from_sklearn(linear_model.LogisticRegression())
    with pytest.raises(InputError, match="dtype is"):
        fg.from_sklearn(linear_model.Ridge().fit(X, X[:, 0]), dtype="float16")
