"""Automatic padding written out, where onnxruntime does not read it as the standard has it."""

from __future__ import annotations

from typing import Any

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Node
from flowgrad.ir.ops.convolution.window import SAME, same_pads, spatial_tuple
from flowgrad.ir.ops.registry import attr, refuse


def is_misread(node: Node) -> bool:
    """True for automatic padding that is known before the run and that onnxruntime reads otherwise.

    In pooling it forgets dilations, in Conv it refuses them; and it begins inside of the image where strides leave out
    elements, or takes that for an error.
    """
    return _misread_pads(node) is not None


def _misread_pads(node: Node) -> tuple[int, ...] | None:
    geometry = _geometry(node)
    shape = node.input(0).type.shape
    if geometry is None or shape is None:
        return None
    reach, strides, dilations = geometry
    if max(dilations) == 1 and all(r >= s for r, s in zip(reach, strides, strict=True)):
        return None
    sizes = [1 if s == 1 else n for n, s in zip(shape[2:], strides, strict=True)]  # which make no difference then
    known = [n for n in sizes if isinstance(n, int)]
    if len(known) < len(sizes):
        return None
    begin, end = same_pads(known, reach, strides, attr(node, "auto_pad"))
    return *begin, *end


def _geometry(node: Node) -> tuple[list[int], tuple[int, ...], tuple[int, ...]] | None:
    """Return the reach of the window, its strides and dilations; None without automatic padding or a known kernel."""
    kernel = attr(node, "kernel_shape") or (node.input(1).type.shape or ())[2:]
    if attr(node, "auto_pad") not in SAME or not kernel or not all(isinstance(k, int) for k in kernel):
        return None
    strides = spatial_tuple(attr(node, "strides"), len(kernel), 1, "strides")
    dilations = spatial_tuple(attr(node, "dilations"), len(kernel), 1, "dilations")
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)], strides, dilations


def padded(b: Builder, node: Node) -> Any:
    """The same, with the pads that automatic padding stands for."""
    pads = _misread_pads(node)
    if pads is None:
        return refuse("its padding is not automatic, is known only at run time, or is read by everyone alike")
    attributes = {k: v for k, v in node.attributes.items() if k not in ("auto_pad", "ceil_mode")}
    made = b.add_node(node.op, node.inputs, {**attributes, "pads": pads}, outputs=len(node.outputs))
    return tuple(made.outputs)


def is_misread_transpose(node: Node) -> bool:
    """True for a ConvTranspose with automatic padding whose strides pass its kernel: onnxruntime makes its image smaller."""
    geometry = _geometry(node)
    if geometry is None or attr(node, "output_shape"):
        return False
    reach, strides, _ = geometry
    return any(r < s for r, s in zip(reach, strides, strict=True))


def padded_transpose(b: Builder, node: Node) -> Any:
    """The same, with pads and output padding: the image has the extents of x times the strides."""
    geometry = _geometry(node)
    if geometry is None or attr(node, "output_shape"):
        return refuse("its padding is not automatic, or its kernel is known only at run time")
    reach, strides, _ = geometry
    extra = spatial_tuple(attr(node, "output_padding"), len(reach), 0, "output_padding")
    over = [r + e - s for r, e, s in zip(reach, extra, strides, strict=True)]
    small, large = [max(t, 0) // 2 for t in over], [max(t, 0) - max(t, 0) // 2 for t in over]
    pads = small + large if attr(node, "auto_pad") == "SAME_UPPER" else large + small
    attributes = {k: v for k, v in node.attributes.items() if k not in ("auto_pad", "output_shape")}
    more = [e + max(-t, 0) for e, t in zip(extra, over, strict=True)]
    return b.add_node(node.op, node.inputs, {**attributes, "pads": pads, "output_padding": more}).output()
