"""More ways to add nodes to a random graph: layers, windows and forms that the fuzzer's graphs do not have."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from flowgrad.ir.graph import Value
from flowgrad.ir.types import BOOL, INT64, dtype_of
from flowgrad.tools.maintenance.graph_maker import NAMES, WORLDS, Kind, Maker, Rejected, kind
from flowgrad.tools.maintenance.random_nodes import filled
from flowgrad.tools.maintenance.random_shapes import common_extent

LAYERS: list[tuple[Kind, float]] = []
"""The ways of this file."""

layer = functools.partial(kind, into=LAYERS)
UINT8, INT32 = dtype_of("uint8"), dtype_of("int32")


def plain_dims(x: Value) -> list[Any]:
    """Return the dims of a value; Rejected where one is no number or plain name."""
    dims = list(x.type.shape or ())
    if any(not isinstance(d, int) and repr(d) not in NAMES for d in dims):
        raise Rejected("dims")
    return dims


def image(m: Maker, rank: int | None = None) -> Value:
    """Return a value with channels and at least one spatial axis, none of them empty."""
    wanted = rank or m.one_of([3, 4, 4])
    found = [v for v in m.known(rank=wanted) if not any(0 in m.extents(v, w) for w in range(WORLDS))]
    if found and m.chance(0.7):
        return m.one_of(found)  # type: ignore[no-any-return]
    spatial = [m.one_of([1, 2, 3, 4, 5]) for _ in range(wanted - 2)]
    return m.input(None, [m.one_of([1, 2, m.dim() or 1]), m.one_of([1, 2, 3, 4]), *spatial])


def channels(m: Maker, x: Value) -> int:
    """Return the number of channels; Rejected where it is named."""
    count = (x.type.shape or ("", ""))[1]
    if not isinstance(count, int) or not count:
        raise Rejected("channels")
    return count


# ---- elementwise --------------------------------------------------------------------------------------------------------


@layer(2)
def more_unary(m: Maker) -> None:
    """Functions that the other ways leave out, and attributes other than the default."""
    op, attributes = m.one_of([
        ("Softsign", {}), ("ThresholdedRelu", {"alpha": 0.25}), ("Swish", {"alpha": 0.5}), ("Swish", {"alpha": -1.5}),
        ("Selu", {"alpha": 1.5, "gamma": 0.75}), ("Elu", {"alpha": 0.25}), ("HardSwish", {}), ("HardSigmoid", {}),
        ("LeakyRelu", {"alpha": -0.5}), ("Gelu", {}), ("Shrink", {"bias": 0.5, "lambd": 0.5}), ("Mish", {}), ("Erf", {}),
        ("IsInf", {"detect_negative": 0})])
    m.emit(op, [m.pick()], attributes)


@layer()
def gated(m: Maker) -> None:
    """SwiGLU of two values of one type."""
    x = m.pick()
    m.emit("SwiGLU", [x, m.one_of([v for v in m.known() if v.type == x.type])], {"alpha": m.one_of([1.0, 0.5, -2.0])})


@layer()
def clip_by_values(m: Maker) -> None:
    """Clip whose bounds are scalars of the graph."""
    x = m.pick()
    low, high = m.leaf(()), m.leaf(())
    m.emit("Clip", [x, m.one_of([low, None]), m.one_of([high, None])])


@layer()
def power_of_values(m: Maker) -> None:
    """Positive numbers to any power, and whole powers of an integer type."""
    x = m.pick()
    if m.chance(0.4):
        m.emit("Pow", [x, np.asarray(m.one_of([2, 3]), np.int64)])
        return
    base = m.emit("Add", [m.emit("Sigmoid", [m.partner(x)]), 0.25])
    m.emit("Pow", [base, x])


@layer(1.5)
def types(m: Maker) -> None:
    """Casts to wider and narrower types, to integers and truth values, and often back."""
    x = m.pick(dtype=m.one_of([m.dtype, m.dtype, INT64, BOOL]))
    target = dtype_of(m.one_of(["float64", "float32", "float64", "float32", "int64", "int32", "bool"]))
    if m.chance(0.5):
        y = m.emit("Cast", [x], {"to": target.onnx})
    else:
        y = m.emit("CastLike", [x, m.constant(np.zeros((), target.numpy))])
    if y.type.dtype != m.dtype:
        m.emit("Cast", [y], {"to": m.dtype.onnx})


@layer()
def bits(m: Maker) -> None:
    """Shifts and logic of bits, cast to floats."""
    if m.chance(0.5):
        shape = [m.one_of([1, 2, 3]) for _ in range(m.one_of([0, 1, 2]))]

        def small(s: tuple[int, ...]) -> Any:
            return np.asarray(m.rng.integers(0, 8, s), np.uint8)

        y = m.emit("BitShift", [m.input(UINT8, shape, small), m.constant(small(tuple(shape[-1:])))],
                   {"direction": m.one_of(["LEFT", "RIGHT"])})
    else:
        x = m.pick(dtype=INT64)
        op = m.one_of(["BitwiseNot", "BitwiseOr", "BitwiseAnd", "BitwiseXor"])
        y = m.emit(op, [x] if op == "BitwiseNot" else [x, m.partner(x, INT64)])
    m.emit("Cast", [y], {"to": m.dtype.onnx})


@layer()
def logic(m: Maker) -> None:
    """Truth values joined, then choosing between values."""
    x = m.pick()
    a, c = m.emit("Less", [x, m.partner(x)]), m.emit("Greater", [x, m.one_of([0.0, 0.5, -0.25])])
    test = m.emit(m.one_of(["And", "Or", "Xor"]), [a, c])
    if m.chance(0.5):
        test = m.emit("Not", [test])
    m.emit("Where", [test, x, m.partner(x)])


# ---- reductions, products -----------------------------------------------------------------------------------------------


@layer(1.2)
def cumulative_product(m: Maker) -> None:
    """Products so far."""
    x = m.pick(low=1)
    m.emit(m.one_of(["CumProd", "CumProd", "CumSum"]), [x, m.constant(np.asarray(m.axis(x), np.int64))],
           {"exclusive": int(m.chance(0.5)), "reverse": int(m.chance(0.5))})


@layer()
def more_einsum(m: Maker) -> None:
    """Einstein sums of three operands, of diagonals, with batches and ellipses."""
    n, k = m.one_of([1, 2, 3]), m.dim()
    equation, shapes = m.one_of([
        ("ij,jk,kl->il", [(n, k), (k, 2), (2, 3)]), ("ii->i", [(n, n)]), ("ii", [(n, n)]),
        ("bij,bjk->bik", [(k, n, 2), (k, 2, n)]), ("...ij,...jk->...ik", [(k, n, 2), (1, 2, n)]),
        ("bhid,bhjd->bhij", [(k, 2, n, 3), (k, 2, 2, 3)]), ("iji->j", [(n, k, n)]),
        ("i,i->", [(k,), (k,)]), ("ij->ji", [(n, k)]), ("...->...", [(n, k)]), ("ij,kj,k->i", [(n, k), (2, k), (2,)])])
    m.emit("Einsum", [m.leaf(s) if m.chance(0.5) else m.input(None, s) for s in shapes], {"equation": equation})


# ---- norms --------------------------------------------------------------------------------------------------------------


@layer(1.2)
def channel_norms(m: Maker) -> None:
    """Normalizations of images."""
    x = image(m)
    c, choice = channels(m, x), m.rng.integers(4)
    if choice == 0:
        m.emit("LRN", [x], {"size": m.one_of([1, 2, 3, 5]), "alpha": m.one_of([0.5, 0.25]), "beta": m.one_of([0.75, 0.5]),
                            "bias": m.one_of([1.0, 2.0])})
    elif choice == 1:
        axes = m.one_of([(0, 2, 3), (1,), (0, 2)])
        m.emit("MeanVarianceNormalization", [x], {"axes": tuple(a for a in axes if a < m.rank(x))})
    elif choice == 2:
        m.emit("InstanceNormalization", [x, m.leaf((c,)), m.leaf((c,))], {"epsilon": 0.125})
    else:
        groups = m.one_of([g for g in range(1, c + 1) if c % g == 0])
        m.emit("GroupNormalization", [x, m.leaf((c,)), m.leaf((c,))], {"num_groups": groups, "epsilon": 0.125})


@layer()
def norm_outputs(m: Maker) -> None:
    """Normalizations with their further outputs."""
    x = m.pick(low=2)
    if m.chance(0.5):
        axis = -int(m.rng.integers(1, m.rank(x) + 1))
        dims = tuple(x.type.shape or ())[axis:]
        m.emit("LayerNormalization", [x, m.leaf(dims), m.leaf(dims)], {"axis": axis, "epsilon": 0.125},
               outputs=m.one_of([1, 2, 3]))
        return
    c = channels(m, x)
    training = int(m.chance(0.6))
    variance = m.emit("Add", [m.emit("Sigmoid", [m.leaf((c,))]), 0.25])
    m.emit("BatchNormalization", [x, m.leaf((c,)), m.leaf((c,)), m.leaf((c,)), variance],
           {"training_mode": training, "epsilon": 0.125, "momentum": 0.75}, outputs=m.one_of([1, 3]) if training else 1)


@layer(0.7)
def lp_norm(m: Maker) -> None:
    """Division by a norm; dropping out while nothing is trained."""
    x = m.pick(low=1)
    if m.chance(0.5):
        m.emit("LpNormalization", [x], {"axis": m.axis(x), "p": m.one_of([1, 2])})
    else:
        m.emit("Dropout", [x, m.one_of([None, np.asarray(0.25, np.float32)]), m.one_of([None, np.asarray(False)])],
               outputs=m.one_of([1, 2]))


# ---- windows --------------------------------------------------------------------------------------------------------------


def window(m: Maker, x: Value, most: int = 3) -> dict[str, Any]:
    """Return attributes of a window that fits."""
    kernel = [min(int(m.rng.integers(1, most + 1)), n) for n in m.extents(x)[2:]]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": [m.one_of([1, 1, 2, 3]) for _ in kernel]}
    if m.chance(0.4):
        attributes["dilations"] = [m.one_of([1, 2]) for _ in kernel]
    if m.chance(0.3):
        attributes["auto_pad"] = m.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif m.chance(0.7):
        attributes["pads"] = [int(m.rng.integers(0, k)) for k in kernel + kernel]
    return attributes


@layer(2)
def more_pooling(m: Maker) -> None:
    """Pools with uneven padding, dilations and automatic padding."""
    x = image(m)
    if m.chance(0.25):
        op = m.one_of(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "GlobalLpPool"])
        m.emit(op, [x], {"p": m.one_of([1, 2, 3])} if op == "GlobalLpPool" else {})
        return
    op, attributes = m.one_of(["MaxPool", "AveragePool", "LpPool", "LpPool"]), window(m, x)
    if "auto_pad" not in attributes and op != "LpPool":  # the text counts windows of nothing there, onnx.reference does not
        attributes["ceil_mode"] = int(m.chance(0.4))
    if op == "LpPool":
        attributes["p"] = m.one_of([1, 2, 3])
    if op == "AveragePool":
        attributes["count_include_pad"] = int(m.chance(0.5))
    filled(m, op, [x], attributes)


@layer(1.5)
def more_convolution(m: Maker) -> None:
    """Convolutions of one to three axes, groups, uneven padding; transposed ones with every way to give the extents."""
    x = image(m, m.one_of([3, 4, 5]))
    c = channels(m, x)
    group = m.one_of([g for g in range(1, c + 1) if c % g == 0])
    attributes = window(m, x)
    kernel = attributes.pop("kernel_shape")
    attributes["group"] = group
    rank = len(kernel)
    if m.chance(0.5):
        if attributes.get("auto_pad", "").startswith("SAME"):
            attributes.pop("dilations", None)
        out = group * m.one_of([1, 2])
        filled(m, "Conv", [x, m.leaf((out, c // group, *kernel)), m.leaf((out,)) if m.chance(0.5) else None], attributes)
        return
    attributes.pop("auto_pad", None)
    if m.chance(0.5):
        attributes["output_padding"] = [int(m.rng.integers(0, s)) for s in attributes["strides"]]
    elif m.chance(0.4):
        attributes.pop("pads", None)
        attributes.pop("dilations", None)
        attributes["strides"] = [min(s, k) for s, k in zip(attributes["strides"], kernel, strict=True)]  # onnx.checker wants it
        attributes["auto_pad"] = m.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif m.chance(0.4):
        attributes.pop("pads", None)
        full = [s * (n - 1) + (k - 1) * d + 1 for s, n, k, d in zip(
            attributes["strides"], m.extents(x)[2:], kernel, attributes.get("dilations", [1] * rank), strict=True)]
        attributes["output_shape"] = [  # onnx.checker wants no less than there was
            max(n, f - int(m.rng.integers(0, 2))) for f, n in zip(full, m.extents(x)[2:], strict=True)]
    out = m.one_of([1, 2])
    bias = m.leaf((out * group,)) if m.chance(0.5) else None
    filled(m, "ConvTranspose", [x, m.leaf((c, out, *kernel)), bias], attributes)


@layer(2)
def resize(m: Maker) -> None:
    """Every way to resize but cropping."""
    x = image(m)
    mode = m.one_of(["nearest", "linear", "linear", "cubic"])
    places = m.one_of(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"])
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": places}
    if mode == "nearest":
        attributes["nearest_mode"] = m.one_of(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
    elif m.chance(0.25):
        attributes["antialias"] = 1
    if mode == "cubic" and m.chance(0.4):
        attributes |= {"exclude_outside": int(m.chance(0.5)), "cubic_coeff_a": m.one_of([-0.5, -0.75])}
    over = list(range(2, m.rank(x)))
    if m.chance(0.5):
        m.emit("Resize", [x, None, None, [int(m.rng.integers(1, 7)) for _ in over]], attributes | {"axes": tuple(over)})
        return
    scales = [m.one_of([0.5, 1.0, 1.5, 2.0, 3.0]) for _ in over]
    m.emit("Resize", [x, None, np.asarray([1.0, 1.0, *scales], np.float32)], attributes)


@layer()
def blocks(m: Maker) -> None:
    """Depth to space and back."""
    x = image(m, 4)
    if m.chance(0.5):
        m.emit("DepthToSpace", [x], {"blocksize": m.one_of([1, 2]), "mode": m.one_of(["DCR", "CRD"])})
    else:
        m.emit("SpaceToDepth", [x], {"blocksize": m.one_of([1, 2])})


@layer(0.6)
def grid(m: Maker) -> None:
    """A sampling grid."""
    count, rank = m.one_of([1, 2]), m.one_of([2, 3])
    size = [count, 1, *(m.one_of([1, 2, 3]) for _ in range(rank))]
    theta = m.leaf((count, rank, rank + 1)) if m.chance(0.3) else m.input(None, (count, rank, rank + 1))
    m.emit("AffineGrid", [theta, size], {"align_corners": int(m.chance(0.5) and 1 not in size[2:])})


# ---- sequences --------------------------------------------------------------------------------------------------------------


@layer()
def reverse_sequence(m: Maker) -> None:
    """The first entries of each row, turned round."""
    x = m.pick(low=2)
    time, batch = m.one_of([(0, 1), (1, 0)])
    dims = plain_dims(x)
    least = common_extent(m, x, time)

    def lengths(s: tuple[int, ...]) -> Any:
        return np.asarray(m.rng.integers(min(1, least), least + 1, s), np.int64)

    m.emit("ReverseSequence", [x, m.input(INT64, (dims[batch],), lengths)], {"time_axis": time, "batch_axis": batch})


@layer(1.2)
def more_recurrent(m: Maker) -> None:
    """Recurrent layers with lengths, initial states, peepholes, other layouts and activations."""
    x = m.pick(rank=3)
    dims = plain_dims(x)
    op, gates = m.one_of([("RNN", 1), ("GRU", 3), ("LSTM", 4)])
    direction, count = m.one_of([("forward", 1), ("reverse", 1), ("bidirectional", 2)])
    layout = int(m.chance(0.2))
    batch, time = (dims[0], 1) if layout else (dims[1], 0)
    least = common_extent(m, x, time)

    def lengths(s: tuple[int, ...]) -> Any:
        return np.asarray(m.rng.integers(min(1, least), least + 1, s), np.int32)

    attributes: dict[str, Any] = {"hidden_size": 2, "direction": direction, "layout": layout}
    if op == "GRU":
        attributes["linear_before_reset"] = int(m.chance(0.5))
    if op == "LSTM" and m.chance(0.2):
        attributes["input_forget"] = 1
    if m.chance(0.2):
        attributes["clip"] = 1.5
    if m.chance(0.2):
        attributes["activations"] = {"RNN": ("Softsign",), "GRU": ("Sigmoid", "Softsign"),
                                     "LSTM": ("Sigmoid", "Softsign", "Tanh")}[op] * count
    state = (batch, count, 2) if layout else (count, batch, 2)
    inputs = [x, m.leaf((count, gates * 2, dims[2])), m.leaf((count, gates * 2, 2)),
              m.leaf((count, gates * 4)) if m.chance(0.6) else None,
              m.input(INT32, (batch,), lengths) if m.chance(0.4) else None, m.leaf(state) if m.chance(0.5) else None]
    if op == "LSTM":
        inputs += [m.leaf(state) if m.chance(0.5) else None, m.leaf((count, 6)) if m.chance(0.4) else None]
    m.emit(op, inputs, attributes, outputs=m.one_of([1, 2, 3 if op == "LSTM" else 2]))


# ---- losses, places -----------------------------------------------------------------------------------------------------


@layer()
def weighted_loss(m: Maker) -> None:
    """Losses with weights of classes."""
    x = m.pick(low=2)
    dims = plain_dims(x)
    classes = channels(m, x)
    labels = m.input(INT64, [dims[0], *dims[2:]], lambda s: np.asarray(m.rng.integers(0, classes, s)))
    weights = m.constant((0.25 + m.rng.random(classes)).astype(m.dtype.numpy))
    attributes = {"reduction": m.one_of(["mean", "sum", "none"]), "ignore_index": m.one_of([None, 0, 1])}
    if m.chance(0.5):
        m.emit("SoftmaxCrossEntropyLoss", [x, labels, weights], attributes, outputs=m.one_of([1, 2]))
    else:
        m.emit("NegativeLogLikelihoodLoss", [x, labels, weights], attributes)


@layer(1.2)
def deep_places(m: Maker) -> None:
    """GatherND and ScatterND with tuples of places and batches."""
    x = m.pick(low=2)
    extents = [common_extent(m, x, a) for a in range(m.rank(x))]
    if 0 in extents:
        raise Rejected("empty")
    depth = int(m.rng.integers(1, m.rank(x) + 1))

    def places(shape: tuple[int, ...], low: int, depth: int = depth) -> Any:
        columns = [m.rng.integers(-extents[low + d], extents[low + d], shape) for d in range(depth)]
        return np.stack([np.asarray(c) for c in columns], -1).astype(np.int64)

    if m.chance(0.5):
        if m.chance(0.4) and m.extents(x)[0] == m.extents(x, 1)[0] and depth < m.rank(x):
            m.emit("GatherND", [x, m.constant(places((m.extents(x)[0], 2), 1))], {"batch_dims": 1})
        else:
            m.emit("GatherND", [x, m.constant(places(m.one_of([(2,), (1, 3), ()]), 0))])
        return
    mode = m.one_of(["add", "mul", "max", "min", "none"])
    count = 1 if mode == "none" else m.one_of([1, 2, 3])
    m.emit("ScatterND", [x, m.constant(places((count,), 0)), m.leaf([count, *plain_dims(x)[depth:]])], {"reduction": mode})


@layer()
def one_hot(m: Maker) -> None:
    """One-hot rows of values of the graph, for places out of range as well (onnx.checker wants rank 1 or more)."""
    depth = m.one_of([1, 2, 3])
    shape = m.one_of([(1,), (2,), (m.dim(),), (2, 3)])
    places = m.input(INT64, shape, lambda s: np.asarray(m.rng.integers(-depth, depth + 1, s)))
    values = m.leaf((2,)) if m.chance(0.5) else m.input(None, (2,))
    m.emit("OneHot", [places, np.asarray(depth), values], {"axis": m.one_of([-1, 0])})


@layer()
def ranges(m: Maker) -> None:
    """A row of numbers of a float or integer type."""
    kind_ = m.one_of([m.dtype, INT64]).numpy
    start, limit, delta = m.one_of([(0, 3, 1), (5, 0, -2), (1, 1, 1), (-2, 4, 4)])
    y = m.emit("Range", [np.asarray(start, kind_), np.asarray(limit, kind_), np.asarray(delta, kind_)])
    m.emit("Mul", [m.emit("Cast", [y], {"to": m.dtype.onnx}), m.leaf(())])


@layer(1.2)
def computed_shape(m: Maker) -> None:
    """A reshape, expansion or slice whose numbers are computed from extents."""
    x = m.pick(low=1)
    shape = m.emit("Shape", [x])
    choice = m.rng.integers(4)
    if choice == 0:
        first = m.emit("Slice", [shape, [0], [1]])
        m.emit("Reshape", [x, m.emit("Concat", [first, m.b.ints([-1])], {"axis": 0})])
    elif choice == 1:
        m.emit("Expand", [x, m.emit("Concat", [m.b.ints([2]), shape], {"axis": 0})])
    elif choice == 2:
        extent = m.emit("Gather", [shape, [m.axis(x)]])
        half = m.emit("Div", [m.emit("Add", [extent, [1]]), [2]])
        m.emit("Slice", [x, [0], half, [0]])
    else:
        m.emit("Mul", [m.emit("Cast", [m.emit("Size", [x])], {"to": m.dtype.onnx}), m.leaf(())])
        m.emit("ConstantOfShape", [shape], {"value": np.asarray([2], m.one_of([m.dtype, INT64]).numpy)})


@layer(0.8)
def more_padding(m: Maker) -> None:
    """Padding of named axes with a value of the graph."""
    x = m.pick(low=1)
    axis = m.axis(x)
    amounts = [int(a) for a in m.rng.integers(0, 3, 2)]
    m.emit("Pad", [x, amounts, m.one_of([None, m.leaf(())]), [axis]])
