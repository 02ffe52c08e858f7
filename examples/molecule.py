"""Energy, forces and products with the Hessian of any number of atoms, all three from one file that onnxruntime runs."""

import numpy as np
import onnxruntime

import flowgrad as fg

model = fg.load(b"""graph @repulsion (%positions: f64[N,3]) -> (%energy: f64[]) {
  %from: f64[N,1,3] = Unsqueeze(%positions, [1])
  %to: f64[1,N,3] = Unsqueeze(%positions, [0])
  %apart: f64[N,N,3] = Sub(%from, %to)
  %squares: f64[N,N] = ReduceSumSquare(%apart, [2]) {keepdims=0}
  %away: f64[N,N] = Neg(%squares)
  %near: f64[N,N] = Exp(%away)
  %energy: f64[] = ReduceSum(%near) {keepdims=0}
}""")
fg.hvp(model, "energy", "positions").to_onnx("/tmp/molecule.onnx")
session = onnxruntime.InferenceSession("/tmp/molecule.onnx")
for count in (2, 5):
    at, along = np.random.default_rng(count).uniform(-1, 1, (2, count, 3))
    energy, slopes, product = session.run(None, {"positions": at, "positions_tangent": along})
    print(f"{count} atoms: energy {energy:.4f}, total force {np.abs(slopes.sum(0)).max():.1e}, curvature {np.vdot(along, product):.4f}")
