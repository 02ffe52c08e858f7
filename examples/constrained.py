"""Two solvers of SciPy on 200 variables: L-BFGS by minimize(jac=True), trust-constr with sparse exact derivatives."""

from scipy.optimize import NonlinearConstraint, minimize

import flowgrad as fg

model = fg.load(b"""graph @valley (%x: f64[200]) -> (%height: f64[], %products: f64[199]) {
  %here: f64[199] = Slice(%x, [0], [199])
  %there: f64[199] = Slice(%x, [1], [200])
  %products: f64[199] = Mul(%here, %there)
  %square: f64[199] = Mul(%here, %here)
  %rise: f64[199] = Sub(%there, %square)
  %left: f64[199] = Sub(f64(1.0), %here)
  %steep: f64[] = ReduceSumSquare(%rise) {keepdims=0}
  %flat: f64[] = ReduceSumSquare(%left) {keepdims=0}
  %height: f64[] = Add(%steep, %flat)
}""")
f, g = fg.Objective(model, of="height", sparse=True), fg.VectorFunction(model, of="products", sparse=True)
free = minimize(f.fun_and_jac, f.x0, jac=True, method="L-BFGS-B", options={"maxiter": 500})
products = NonlinearConstraint(g.fun, -1, 0.5, g.jac, g.hess)
bound = minimize(f.fun, f.x0, jac=f.jac, hess=f.hess, method="trust-constr", constraints=products)
print(f"free: {free.fun:.1e}; products up to 0.5: {bound.fun:.4f}, largest {g.fun(bound.x).max():.4f}, {bound.nit} iterations")
