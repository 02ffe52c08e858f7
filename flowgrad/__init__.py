"""Exact derivatives of ONNX models, of any order, as graphs."""

from flowgrad import _checkout as _checkout  # isort: skip
from flowgrad.ir.errors import FlowgradError as FlowgradError
from flowgrad.model import Model as Model
from flowgrad.model import load as load
from flowgrad.transforms.derivatives import grad as grad
from flowgrad.transforms.derivatives import hvp as hvp
from flowgrad.transforms.derivatives import jvp as jvp
from flowgrad.transforms.derivatives import value_and_grad as value_and_grad
from flowgrad.transforms.derivatives import vjp as vjp

__version__ = "0.1.0"
