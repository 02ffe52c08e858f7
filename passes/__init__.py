"""Passes over graphs: differentiation, simplification, and the driver that runs them."""

if __name__ != "flowgrad.passes":
    raise ImportError(f"import flowgrad.passes, not {__name__}")
