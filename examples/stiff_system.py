"""A stiff differential equation (van der Pol), its Jacobian from the graph of its right-hand side."""

import numpy as np
from scipy.integrate import solve_ivp

import flowgrad as fg

model = fg.load(b"""graph @van_der_pol (%y: f64[2]) -> (%rate: f64[2]) {
  %u: f64[1] = Slice(%y, [0], [1])
  %v: f64[1] = Slice(%y, [1], [2])
  %uu: f64[1] = Mul(%u, %u)
  %left: f64[1] = Sub(f64(1.0), %uu)
  %damping: f64[1] = Mul(%left, f64(1000.0))
  %force: f64[1] = Mul(%damping, %v)
  %acceleration: f64[1] = Sub(%force, %u)
  %rate: f64[2] = Concat(%v, %acceleration) {axis=0}
}""")
system = fg.VectorFunction(model)
for name, jacobian in (("exact", lambda t, y: system.jac(y)), ("differences", None)):
    solved = solve_ivp(lambda t, y: system.fun(y), (0, 2000), [2.0, 0.0], method="BDF", jac=jacobian)
    print(f"{name}: {solved.nfev} evaluations, {solved.njev} Jacobians, ends at {np.round(solved.y[:, -1], 4).tolist()}")
