"""Fitted pipelines of scikit-learn as models."""

from __future__ import annotations

from typing import Any

from flowgrad.ir.errors import EngineError, InputError, UnsupportedError
from flowgrad.model import Model, load


def from_sklearn(pipeline: Any, sample: Any = None, *, dtype: str = "float32", **options: Any) -> Model:
    """Return the model of a fitted estimator or pipeline of scikit-learn, as skl2onnx writes it (extra ``sklearn``).

    Inputs have the columns of ``sample``, rows like those that it was fitted on (an array, or a frame, whose columns become
    inputs); without one there is a single input ``X`` of ``dtype``, float[N, features]. Classifiers give ``label`` and
    ``probabilities`` as they are, without dictionaries. ``options`` go to ``skl2onnx.to_onnx``. What is smooth differentiates
    (linear models, kernels, networks, scalers); trees are steps, and their derivative is refused by name. Raises InputError
    for what is not fitted, UnsupportedError for what skl2onnx does not know.

    Examples:
        >>> from sklearn.linear_model import LogisticRegression
        >>> fitted = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
        >>> [value.name for value in fg.from_sklearn(fitted).outputs]
        ['label', 'probabilities']
    """
    skl2onnx = _library()
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    kinds = {"float32": FloatTensorType, "float64": DoubleTensorType}
    if dtype not in kinds:
        raise InputError(f"dtype is 'float32' or 'float64', got {dtype!r}", code="option")
    given: dict[str, Any] = {"X": sample}
    if sample is None:
        features = getattr(pipeline, "n_features_in_", None)
        if features is None:
            raise InputError(f"{type(pipeline).__name__} is not fitted, or does not tell how many features it takes: fit it, or give "
                             "sample=, rows like those it takes", code="fitted")
        given = {"initial_types": [("X", kinds[dtype]([None, features]))]}
    if hasattr(pipeline, "predict_proba"):
        options.setdefault("options", {"zipmap": False})
    try:
        made = skl2onnx.to_onnx(pipeline, **given, **options)
    except Exception as error:  # it raises many kinds of its own
        raise UnsupportedError(f"skl2onnx does not write {type(pipeline).__name__}: {error}", code="sklearn") from error
    return load(made)


def _library() -> Any:
    try:
        import skl2onnx
    except ImportError as error:
        raise EngineError("pipelines need skl2onnx: pip install 'flowgrad[sklearn]'", code="sklearn") from error
    return skl2onnx
