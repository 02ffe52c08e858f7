"""Exact derivatives of ONNX models, of any order, as graphs."""

from flowgrad import _checkout as _checkout  # isort: skip
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
from flowgrad.ir.registry import scoped as scoped
from flowgrad.model import Model as Model
from flowgrad.model import load as load
from flowgrad.passes.manager import PassManager as PassManager
from flowgrad.pipelines import from_sklearn as from_sklearn
from flowgrad.runtime.engines import engines as engines
from flowgrad.session import InferenceSession as InferenceSession
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

__version__ = "0.1.0"
