"""Exact derivatives of ONNX models, of any order, as graphs.

What is named here is imported when it is first used: a program that only runs a graph does not load what differentiates one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowgrad import _checkout as _checkout

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flowgrad import attack as attack
    from flowgrad import explain as explain
    from flowgrad import passes as passes
    from flowgrad.fitting import Fitted as Fitted
    from flowgrad.fitting import fit as fit
    from flowgrad.functions import Objective as Objective
    from flowgrad.functions import VectorFunction as VectorFunction
    from flowgrad.ir.errors import FlowgradError as FlowgradError
    from flowgrad.ir.limits import Limits as Limits
    from flowgrad.ir.ops.registry import op as op
    from flowgrad.model import Model as Model
    from flowgrad.model import load as load
    from flowgrad.passes.manager import PassManager as PassManager
    from flowgrad.passes.registry import scoped as scoped
    from flowgrad.pipelines import from_sklearn as from_sklearn
    from flowgrad.report import view as view
    from flowgrad.runtime.bindings import IOBinding as IOBinding
    from flowgrad.runtime.bindings import OrtValue as OrtValue
    from flowgrad.runtime.engines import engines as engines
    from flowgrad.session import ExecutionMode as ExecutionMode
    from flowgrad.session import GraphOptimizationLevel as GraphOptimizationLevel
    from flowgrad.session import InferenceSession as InferenceSession
    from flowgrad.session import RunOptions as RunOptions
    from flowgrad.session import SessionOptions as SessionOptions
    from flowgrad.session import get_all_providers as get_all_providers
    from flowgrad.session import get_available_providers as get_available_providers
    from flowgrad.session import get_device as get_device
    from flowgrad.transforms.batching import vmap as vmap
    from flowgrad.transforms.checkpointing import checkpoint as checkpoint
    from flowgrad.transforms.curvature import fisher as fisher
    from flowgrad.transforms.curvature import gauss_newton as gauss_newton
    from flowgrad.transforms.curvature import inverse_outer_product as inverse_outer_product
    from flowgrad.transforms.curvature import outer_product as outer_product
    from flowgrad.transforms.derivatives import grad as grad
    from flowgrad.transforms.derivatives import hvp as hvp
    from flowgrad.transforms.derivatives import jvp as jvp
    from flowgrad.transforms.derivatives import value_and_grad as value_and_grad
    from flowgrad.transforms.derivatives import vjp as vjp
    from flowgrad.transforms.editing import compose as compose
    from flowgrad.transforms.editing import extract as extract
    from flowgrad.transforms.editing import guided as guided
    from flowgrad.transforms.editing import override_adjoint as override_adjoint
    from flowgrad.transforms.editing import pick as pick
    from flowgrad.transforms.editing import stop_gradient as stop_gradient
    from flowgrad.transforms.editing import straight_through as straight_through
    from flowgrad.transforms.editing import unbatch as unbatch
    from flowgrad.transforms.gradcheck import gradcheck as gradcheck
    from flowgrad.transforms.hessians import hessian as hessian
    from flowgrad.transforms.jacobians import jacobian as jacobian
    from flowgrad.transforms.kinks import kinks as kinks
    from flowgrad.transforms.losses import with_loss as with_loss
    from flowgrad.transforms.networks import Network as Network
    from flowgrad.transforms.networks import network as network
    from flowgrad.transforms.quantization import through_quantization as through_quantization
    from flowgrad.transforms.training import next_inputs as next_inputs
    from flowgrad.transforms.training import train_step as train_step
else:
    _NAMES = {  # the imports above: a test compares
        "attack": "", "explain": "", "passes": "", "fitting": "Fitted fit", "functions": "Objective VectorFunction",
        "ir.errors": "FlowgradError", "ir.limits": "Limits", "ir.ops.registry": "op",
        "model": "Model load", "passes.manager": "PassManager", "passes.registry": "scoped", "pipelines": "from_sklearn", "report": "view",
        "runtime.bindings": "IOBinding OrtValue", "runtime.engines": "engines",
        "session": "ExecutionMode GraphOptimizationLevel InferenceSession RunOptions SessionOptions get_all_providers "
                   "get_available_providers get_device",
        "transforms.batching": "vmap", "transforms.checkpointing": "checkpoint",
        "transforms.curvature": "fisher gauss_newton inverse_outer_product outer_product",
        "transforms.derivatives": "grad hvp jvp value_and_grad vjp",
        "transforms.editing": "compose extract guided override_adjoint pick stop_gradient straight_through unbatch",
        "transforms.gradcheck": "gradcheck", "transforms.hessians": "hessian", "transforms.jacobians": "jacobian",
        "transforms.kinks": "kinks", "transforms.losses": "with_loss", "transforms.networks": "Network network",
        "transforms.quantization": "through_quantization", "transforms.training": "next_inputs train_step",
    }
    _WHERE = {name: module for module, names in _NAMES.items() for name in names.split() or [module]}
    __all__ = sorted(_WHERE)

    def __getattr__(name):
        if name not in _WHERE:
            raise AttributeError(f"module 'flowgrad' has no attribute {name!r}")
        from importlib import import_module

        module = import_module(f"flowgrad.{_WHERE[name]}")
        found = globals()[name] = module if name == _WHERE[name] else getattr(module, name)
        return found

    def __dir__():
        return [*__all__, "__version__"]
