"""What detectors do with the boxes they find."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.errors import ValidationError
from flowgrad.ir.graph import Array, Node
from flowgrad.ir.limits import check_time
from flowgrad.ir.ops.registry import Trait, attr, op
from flowgrad.ir.types import INT64, UNKNOWN, Type, merge_dims

FLOATS = ("boxes", "scores", "iou_threshold", "score_threshold")


@op("NonMaxSuppression", since=10, outputs=("selected_indices",), traits=(Trait.ZERO, Trait.BOUNDED),
    settings=FLOATS, float32_inputs=FLOATS)
def non_max_suppression(
    boxes: Array, scores: Array, max_output_boxes_per_class: Array | None = None, iou_threshold: Array | None = None,
    score_threshold: Array | None = None, *, center_point_box: int = 0,
) -> Array:
    """Rows (image, class, box): of each class the best boxes that overlap none before them by more than the threshold.

    Of boxes with equal scores the first goes first. Without ``max_output_boxes_per_class`` nothing is selected.
    """
    most = int(_number(max_output_boxes_per_class, 0))
    overlap = _number(iou_threshold, np.float32(0))
    low, high = _corners(boxes, bool(center_point_box))
    found = []
    for image, kind in np.ndindex(*scores.shape[:2]):
        ranked = scores[image, kind]
        order = np.argsort(-ranked, kind="stable")
        if score_threshold is not None and score_threshold.size:
            order = order[ranked[order] > _number(score_threshold, 0)]
        chosen: list[int] = []
        while len(order) and len(chosen) < most:
            check_time()
            best, order = int(order[0]), order[1:]
            chosen.append(best)
            order = order[~(_shared(low[image], high[image], best, order) > overlap)]
        found += [(image, kind, box) for box in chosen]
    return np.array(found, np.int64).reshape(-1, 3)


def _number(array: Array | None, default: Any) -> Any:
    return default if array is None or not array.size else array.reshape(-1)[0]


def _corners(boxes: Array, by_centre: bool) -> tuple[Array, Array]:
    """Return the lower and the upper corner of each box."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if by_centre:
        return first - second / 2, first + second / 2
    return np.minimum(first, second), np.maximum(first, second)


def _shared(low: Array, high: Array, box: int, others: Array) -> Array:
    """Return intersection over union of a box with others; 0 where there is no intersection."""
    sides = np.minimum(high[box], high[others]) - np.maximum(low[box], low[others])
    inner = np.where((sides > 0).all(-1), sides.prod(-1), 0)
    union = (high[box] - low[box]).prod() + (high[others] - low[others]).prod(-1) - inner
    return np.asarray(np.divide(inner, union, out=np.zeros_like(inner), where=(inner > 0) & (union > 0)))


@non_max_suppression.types
def _(node: Node) -> Type:
    """[selected, 3]."""
    boxes, scores = node.input(0).type, node.input(1).type
    if attr(node, "center_point_box") not in (0, 1):
        raise ValidationError("center_point_box is 0 or 1", code="attribute", where=node.label)
    if boxes.rank not in (None, 3) or scores.rank not in (None, 3):
        raise ValidationError(f"boxes [images, boxes, 4] and scores [images, classes, boxes] are {boxes!r} and {scores!r}",
                              code="shape", where=node.label)
    if boxes.shape is not None:
        merge_dims(boxes.shape[2], 4)
        if scores.shape is not None:
            merge_dims(boxes.shape[0], scores.shape[0])
            merge_dims(boxes.shape[1], scores.shape[2])
    return Type(INT64, (UNKNOWN, 3))


@non_max_suppression.ranks
def _(node: Node) -> list[int | None]:
    """Boxes and scores have an axis for the image and one for the box."""
    return [3, 3]
