"""Passes over graphs: differentiation, simplification, and the driver that runs them."""

if __name__ != "flowgrad.passes":
    raise ImportError(f"import flowgrad.passes, not {__name__}")

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowgrad.passes.registry import Pass


def available() -> "dict[str, Pass]":
    """Return every pass by name, with its kind, options and summary."""
    from flowgrad.passes.registry import all_passes

    return all_passes()
