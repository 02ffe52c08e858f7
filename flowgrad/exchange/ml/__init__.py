"""Operators of the domain ai.onnx.ml, written in operators of the standard as a file is read.

What is smooth in them is differentiated by the rules of those operators, and exported without the domain. Where the text of
the standard leaves the values open, they are those of onnxruntime; where it contradicts what runtimes do, the file is refused.
"""

from flowgrad.exchange.ml import categories, features, linear, svm, trees  # declares adapters

__all__ = ["categories", "features", "linear", "svm", "trees"]
