"""Ways to add nodes that move elements to a random graph."""

from __future__ import annotations

import numpy as np

from flowgrad.ir.graph import Value
from flowgrad.ir.types import INT64
from flowgrad.tools.maintenance.graph_maker import WORLDS, Maker, Rejected, kind

# ---- shapes -------------------------------------------------------------------------------------------------------------------


@kind(2)
def reshape(m: Maker) -> None:
    """A reshape to fixed, partly open or computed extents."""
    x = m.pick()
    choice = m.rng.integers(5)
    if choice == 0:
        m.emit("Reshape", [x, [-1]])
    elif choice == 1 and m.rank(x):
        m.emit("Reshape", [x, [0, -1] if m.chance(0.5) else [-1, *m.extents(x)[1:]]])
    elif choice == 2:
        size = int(np.prod(m.extents(x)))
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        first = m.one_of(divisors)
        m.emit("Reshape", [x, [first, size // first]])
    elif choice == 3:
        y = m.pick(dtype=x.type.dtype)
        m.emit("Reshape", [x, m.emit("Shape", [y])])
    else:
        m.emit("Flatten", [x], {"axis": int(m.rng.integers(0, m.rank(x) + 1))})


@kind(1.5)
def permute(m: Maker) -> None:
    """A transpose."""
    x = m.pick()
    m.emit("Transpose", [x], {"perm": None if m.chance(0.2) else tuple(int(a) for a in m.rng.permutation(m.rank(x)))})


@kind(1.5)
def squeeze(m: Maker) -> None:
    """Squeeze and Unsqueeze."""
    x = m.pick(dtype=m.one_of([m.dtype, m.dtype, INT64]))
    ones = [a for a in range(m.rank(x)) if (x.type.shape or ())[a:a + 1] == (1,)]
    if ones and m.chance(0.6):
        m.emit("Squeeze", [x, ones if m.chance(0.6) else ones[:1]])
    elif m.rank(x) < 4:
        m.emit("Unsqueeze", [x, [int(m.rng.integers(-m.rank(x) - 1, m.rank(x) + 1))]])


@kind(1.2)
def expand(m: Maker) -> None:
    """Expand to given extents or to the shape of another value; Tile."""
    x = m.pick()
    if m.chance(0.3) and m.rank(x):
        m.emit("Tile", [x, [int(r) for r in m.rng.integers(1, 3, m.rank(x))]])
    elif m.chance(0.5):
        m.emit("Expand", [x, m.emit("Shape", [m.partner(x)])])
    else:
        m.emit("Expand", [x, [m.one_of([1, 2]), *([1] * m.rank(x))]])


@kind(1.5)
def concat(m: Maker) -> None:
    """Joining of equals."""
    x = m.pick(low=1, dtype=m.one_of([m.dtype, m.dtype, INT64]))
    axis = m.axis(x)
    fits = [v for v in m.known(x.type.dtype, m.rank(x)) if all(
        np.delete(m.extents(v, w), axis).tolist() == np.delete(m.extents(x, w), axis).tolist() for w in range(WORLDS))]
    m.emit("Concat", [m.one_of(fits) if fits else x for _ in range(int(m.rng.integers(1, 4)))] + [x], {"axis": axis})


@kind()
def split(m: Maker) -> None:
    """Cutting into parts, not all of them used."""
    x = m.pick(low=1)
    axis = m.axis(x)
    extent = m.extents(x)[axis]
    if m.chance(0.5) and extent == m.extents(x, 1)[axis]:
        first = int(m.rng.integers(0, extent + 1))
        m.emit("Split", [x, [first, extent - first]], {"axis": axis}, outputs=2)
    else:
        m.emit("Split", [x], {"axis": axis, "num_outputs": 2}, outputs=2)


@kind(2)
def slicing(m: Maker) -> None:
    """Slices, forwards, backwards and empty."""
    x = m.pick(low=1, dtype=m.one_of([m.dtype, m.dtype, INT64]))
    axes = m.axes(x)
    if len({a % m.rank(x) for a in axes}) < len(axes):
        raise Rejected("axes")
    starts: list[int] = []
    ends: list[int] = []
    steps: list[int] = []
    for _ in axes:
        start, end, step = m.one_of([(0, 2, 1), (1, 2**62, 1), (-1, -(2**62), -1), (0, -1, 1), (-2, 2**62, 1), (0, 2**62, 2),
                                     (-1, 0, -1), (0, 1, 1), (5, 9, 1)])
        for numbers, number in ((starts, start), (ends, end), (steps, step)):
            numbers.append(number)
    m.emit("Slice", [x, starts, ends, axes, steps])


@kind()
def pad(m: Maker) -> None:
    """Padding of every mode, cropping included."""
    x = m.pick(low=1)
    rank = m.rank(x)
    mode = m.one_of(["constant", "constant", "reflect", "edge", "wrap"])
    pads = [int(p) for p in m.rng.integers(-1 if m.chance(0.3) and mode == "constant" else 0, 2, 2 * rank)]
    m.emit("Pad", [x, pads, m.one_of([None, 0.5]) if mode == "constant" else None], {"mode": mode})


@kind(0.7)
def rearrange(m: Maker) -> None:
    """Triangles, blocks, crops."""
    choice = m.rng.integers(3)
    if choice == 0:
        m.emit("Trilu", [m.pick(low=2), m.one_of([None, np.asarray(1), np.asarray(-1)])], {"upper": int(m.chance(0.5))})
    elif choice == 1:
        x = m.pick(low=1)
        m.emit("CenterCropPad", [x, [int(m.rng.integers(1, 4))]], {"axes": (m.axis(x),)})
    else:
        m.emit("EyeLike", [m.pick(rank=2)], {"k": m.one_of([0, 1, -1])})


@kind(0.7)
def shapes(m: Maker) -> None:
    """Extents as numbers, and tensors made of them."""
    x = m.pick()
    choice = m.rng.integers(4)
    shape = m.emit("Shape", [x])
    if choice == 0:
        m.emit("ConstantOfShape", [shape], {"value": np.asarray([1.5], m.dtype.numpy)})
    elif choice == 1:
        m.emit("Size", [x])
    elif choice == 2 and m.rank(x):
        m.emit("Range", [np.asarray(0), m.emit("Gather", [shape, np.asarray(0)]), np.asarray(1)])
    else:
        m.emit("Cast", [m.emit("ReduceProd", [shape], {"keepdims": 0})], {"to": m.dtype.onnx})


# ---- indexing -------------------------------------------------------------------------------------------------------------------


def indices(m: Maker, extent: int, shape: tuple[int, ...], *, negative: bool = True) -> Value:
    """Return indices below an extent, as a constant or an input."""
    if not extent:
        raise Rejected("empty")

    def draw(s: tuple[int, ...]) -> np.ndarray:
        return np.asarray(m.rng.integers(-extent if negative else 0, extent, s), np.int64)

    return m.constant(draw(shape)) if m.chance(0.6) else m.input(INT64, shape, draw)


def common_extent(m: Maker, x: Value, axis: int) -> int:
    """Return the smaller extent of an axis in the worlds."""
    return min(m.extents(x, w)[axis] for w in range(WORLDS))


@kind(1.5)
def gather(m: Maker) -> None:
    """Picked entries along an axis."""
    x = m.pick(low=1)
    axis = m.axis(x)
    m.emit("Gather", [x, indices(m, common_extent(m, x, axis), m.one_of([(), (2,), (3,), (2, 2), (0,)]))], {"axis": axis})


@kind(0.8)
def gather_elements(m: Maker) -> None:
    """Picked elements."""
    x = m.pick(low=1)
    axis = m.axis(x)
    shape = [common_extent(m, x, a) for a in range(m.rank(x))]
    shape[axis] = int(m.rng.integers(1, 4))
    m.emit("GatherElements", [x, indices(m, common_extent(m, x, axis), tuple(shape))], {"axis": axis})


@kind(0.8)
def scatter(m: Maker) -> None:
    """Replaced or added elements, at places that repeat only where the order does not matter."""
    x = m.pick(low=1)
    if m.chance(0.5):
        axis = m.axis(x)
        shape = [common_extent(m, x, a) for a in range(m.rank(x))]
        mode = m.one_of(["none", "add", "mul", "max", "min"])
        shape[axis] = 1 if mode == "none" else int(m.rng.integers(1, 4))
        places = indices(m, common_extent(m, x, axis), tuple(shape))
        m.emit("ScatterElements", [x, places, m.leaf(shape)], {"axis": axis, "reduction": mode})
        return
    extent = common_extent(m, x, 0)
    mode = m.one_of(["none", "add", "max"])
    count = 1 if mode == "none" else 2
    rest = list(x.type.shape or ())[1:]
    m.emit("ScatterND", [x, indices(m, extent, (count, 1), negative=False), m.leaf([count, *rest])], {"reduction": mode})


@kind(0.6)
def more_indexing(m: Maker) -> None:
    """GatherND, OneHot, Compress, NonZero, Unique, ReverseSequence."""
    x = m.pick(low=1)
    choice = m.rng.integers(4)
    if choice == 0:
        m.emit("GatherND", [x, indices(m, common_extent(m, x, 0), (2, 1))])
    elif choice == 1:
        m.emit("OneHot", [indices(m, 3, (2,)), np.asarray(3), m.leaf((2,))], {"axis": m.one_of([-1, 0])})
    elif choice == 2:
        m.emit("Compress", [x, m.constant(np.array([True, False, True])[:common_extent(m, x, 0)])], {"axis": 0})
    else:
        m.emit("NonZero", [x])
