"""Least squares with an exact Jacobian: the parameters of a decay from noisy measurements."""

import numpy as np
from scipy.optimize import least_squares

import flowgrad as fg

model = fg.load(b"""graph @decay (%p: f64[3], %t: f64[T], %measured: f64[T]) -> (%residual: f64[T]) {
  %height: f64[] = Gather(%p, 0)
  %rate: f64[] = Gather(%p, 1)
  %floor: f64[] = Gather(%p, 2)
  %kt: f64[T] = Mul(%t, %rate)
  %fall: f64[T] = Exp(%kt)
  %scaled: f64[T] = Mul(%height, %fall)
  %y: f64[T] = Add(%scaled, %floor)
  %residual: f64[T] = Sub(%y, %measured)
}""")
t = np.linspace(0, 3, 40)
measured = 2.5 * np.exp(-1.3 * t) + 0.4 + 0.01 * np.random.default_rng(0).standard_normal(40)
f = fg.VectorFunction(model, wrt="p", fixed={"t": t, "measured": measured}, start={"p": [1, -1, 0]})
solved = least_squares(f.fun, f.x0, jac=f.jac)
print(f"height, rate, floor = {np.round(solved.x, 2).tolist()} after {solved.nfev} evaluations")
