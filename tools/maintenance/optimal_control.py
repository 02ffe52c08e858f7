"""``python -m flowgrad.tools.maintenance.optimal_control``: a pendulum swung up by SciPy with sparse exact derivatives.

200 stages of 2 states and 1 control, midpoint rule; the least control that brings the pendulum from hanging to standing. The
Lagrangian is one graph: its sparse Hessian, the sparse Jacobian of the constraints and the gradient are models made of it.
Beside it, the same solver with finite differences, which is stopped after ``--seconds``: it takes a forward pass for each of the
602 variables at every step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.model import Model, load
from flowgrad.transforms.derivatives import grad
from flowgrad.transforms.hessians import hessian
from flowgrad.transforms.jacobians import jacobian

TEXT = """graph @pendulum (%z: f64[ALL], %multipliers: f64[STAGES,2], %weight: f64[])
    -> (%cost: f64[], %defects: f64[STAGES,2], %lagrangian: f64[])
{
  %s: f64[STATES] = Slice(%z, [0], [STATES])
  %states: f64[POINTS,2] = Reshape(%s, [POINTS,2])
  %u: f64[STAGES] = Slice(%z, [STATES], [ALL])
  %now: f64[STAGES,2] = Slice(%states, [0], [STAGES])
  %next: f64[STAGES,2] = Slice(%states, [1], [POINTS])
  %angle: f64[STAGES] = Gather(%now, 0) {axis=1}
  %speed: f64[STAGES] = Gather(%now, 1) {axis=1}
  %fall: f64[STAGES] = Sin(%angle)
  %lever: f64[STAGES] = Cos(%angle)
  %push: f64[STAGES] = Mul(%lever, %u)
  %force: f64[STAGES] = Sub(%push, %fall)
  %angle_step: f64[STAGES] = Mul(%speed, f64(HALF))
  %speed_step: f64[STAGES] = Mul(%force, f64(HALF))
  %angle_mid: f64[STAGES] = Add(%angle, %angle_step)
  %speed_mid: f64[STAGES] = Add(%speed, %speed_step)
  %fall_mid: f64[STAGES] = Sin(%angle_mid)
  %lever_mid: f64[STAGES] = Cos(%angle_mid)
  %push_mid: f64[STAGES] = Mul(%lever_mid, %u)
  %force_mid: f64[STAGES] = Sub(%push_mid, %fall_mid)
  %speed_row: f64[1,STAGES] = Unsqueeze(%speed_mid, [0])
  %force_row: f64[1,STAGES] = Unsqueeze(%force_mid, [0])
  %mid: f64[2,STAGES] = Concat(%speed_row, %force_row) {axis=0}
  %rates: f64[STAGES,2] = Transpose(%mid) {perm=[1,0]}
  %step: f64[STAGES,2] = Mul(%rates, f64(STEP))
  %reached: f64[STAGES,2] = Add(%now, %step)
  %defects: f64[STAGES,2] = Sub(%next, %reached)
  %squares: f64[STAGES] = Mul(%u, %u)
  %effort: f64[] = ReduceSum(%squares) {keepdims=0}
  %cost: f64[] = Mul(%effort, f64(HALF))
  %priced: f64[STAGES,2] = Mul(%defects, %multipliers)
  %price: f64[] = ReduceSum(%priced) {keepdims=0}
  %weighed: f64[] = Mul(%cost, %weight)
  %lagrangian: f64[] = Add(%weighed, %price)
}"""


ENDED = {0: "most iterations", 1: "solved", 2: "steps too small", 3: "stopped by time", 4: "constraints not met"}
"""What SciPy's status says."""


def pendulum(stages: int, duration: float = 6.0) -> Model:
    """Return the model: decisions z (states, then controls) to cost, defects of the dynamics, and their Lagrangian."""
    step = duration / stages
    numbers = {"POINTS": stages + 1, "STATES": 2 * stages + 2, "STAGES": stages, "ALL": 3 * stages + 2,
               "HALF": step / 2, "STEP": step}
    text = TEXT
    for word, number in numbers.items():
        text = text.replace(word, repr(number))
    return load(text.encode())


class Problem:
    """The problem as SciPy takes it, with exact derivatives; ``calls`` counts evaluations."""

    def __init__(self, stages: int) -> None:
        self.model = pendulum(stages)
        self.stages = stages
        self.gradient = grad(self.model, "cost", "z")
        self.slopes = jacobian(self.model, "defects", "z", sparse=True)
        self.curvature = hessian(self.model, "lagrangian", "z", sparse=True)
        self.calls: dict[str, int] = {}

    def feeds(self, z: Any, multipliers: Any = None, weight: float = 1.0) -> dict[str, Any]:
        shape = (self.stages, 2)
        priced = np.zeros(shape) if multipliers is None else np.asarray(multipliers)[: 2 * self.stages].reshape(shape)
        return {"z": z, "multipliers": priced, "weight": np.float64(weight)}

    def count(self, what: str) -> None:
        self.calls[what] = self.calls.get(what, 0) + 1

    def cost(self, z: Any) -> float:
        self.count("cost")
        return float(self.model(self.feeds(z))["cost"])

    def cost_slope(self, z: Any) -> Any:
        self.count("gradient")
        return self.gradient(self.feeds(z))["z_grad"]

    def cost_curvature(self, z: Any) -> Any:
        return self._curvature(self.feeds(z))

    def constraints(self, z: Any) -> Any:
        """The defects, and how far the ends are from where they have to be."""
        self.count("constraints")
        ends = z[[0, 1, 2 * self.stages, 2 * self.stages + 1]] - np.array([0.0, 0.0, np.pi, 0.0])
        return np.concatenate([self.model(self.feeds(z))["defects"].reshape(-1), ends])

    def constraint_slopes(self, z: Any) -> Any:
        from scipy.sparse import csr_array, vstack

        self.count("jacobian")
        name = "defects_z_jacobian"
        inner = self.slopes.sparsity[name].matrix(self.slopes(self.feeds(z))[name])
        places = [0, 1, 2 * self.stages, 2 * self.stages + 1]
        ends = csr_array((np.ones(4), (range(4), places)), shape=(4, z.size))
        return vstack([inner, ends]).tocsr()

    def constraint_curvature(self, z: Any, multipliers: Any) -> Any:
        return self._curvature(self.feeds(z, multipliers, 0.0))

    def _curvature(self, feeds: dict[str, Any]) -> Any:
        self.count("hessian")
        name = "z_z_hessian"
        return self.curvature.sparsity[name].matrix(self.curvature(feeds)[name])

    def start(self) -> Any:
        """Return the straight way from hanging to standing, without control."""
        states = np.zeros((self.stages + 1, 2))
        states[:, 0] = np.linspace(0, np.pi, self.stages + 1)
        return np.concatenate([states.reshape(-1), np.zeros(self.stages)])


def solve(problem: Problem, *, exact: bool, steps: int, most_seconds: float) -> tuple[Any, float]:
    """Return SciPy's result and the seconds taken; after ``most_seconds`` an iteration is the last one (status 3)."""
    from scipy.optimize import BFGS, NonlinearConstraint, minimize

    slopes: Callable[..., Any] | str = problem.constraint_slopes if exact else "2-point"
    curvature: Any = problem.constraint_curvature if exact else BFGS()
    limits = NonlinearConstraint(problem.constraints, 0, 0, jac=slopes, hess=curvature)
    began = time.perf_counter()
    found = minimize(problem.cost, problem.start(), method="trust-constr", jac=problem.cost_slope if exact else "2-point",
                     hess=problem.cost_curvature if exact else BFGS(), constraints=[limits],
                     callback=lambda _, state: time.perf_counter() - began > most_seconds,
                     options={"maxiter": steps, "gtol": 1e-6, "xtol": 1e-10})
    return found, time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Solve with both kinds of derivatives and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=200)
    parser.add_argument("--steps", type=int, default=300, help="iterations at most")
    parser.add_argument("--seconds", type=float, default=120.0, help="after which no further iteration starts, on each side")
    arguments = parser.parse_args(argv)
    problem = Problem(arguments.stages)
    for model in (problem.slopes, problem.curvature):
        (pattern,) = model.sparsity.values()
        print(f"{model.notes[-1]}; the fullest row has {np.bincount(pattern.rows).max()}")
    for exact in (True, False):
        problem.calls = {}
        found, seconds = solve(problem, exact=exact, steps=arguments.steps, most_seconds=arguments.seconds)
        calls = ", ".join(f"{count} {what}" for what, count in problem.calls.items())
        print(f"{'exact derivatives' if exact else 'finite differences'}: {ENDED[found.status]} after {found.nit} iterations, "
              f"cost {found.fun:.9g}, constraints {found.constr_violation:.1e}, optimality {found.optimality:.1e}, {seconds:.2f} s, calls: {calls}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
