"""Passes over graphs: differentiation, simplification, and the driver that runs them."""

if __name__ != "flowgrad.passes":
    raise ImportError(f"import flowgrad.passes, not {__name__}")

from flowgrad.passes.registry import Pass, all_passes


def available() -> dict[str, Pass]:
    """Return every pass by name, with its kind, options and summary."""
    return all_passes()
