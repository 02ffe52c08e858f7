"""Ways to add nodes to a random graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ir.builder import Builder
from flowgrad.ir.graph import Graph, Value
from flowgrad.ir.types import BOOL, FLOAT64, INT64, Type, dtype_of
from flowgrad.tools.maintenance.graph_maker import NAMES, WORLDS, Maker, Rejected, kind

SMOOTH = ("Sin", "Cos", "Tanh", "Sigmoid", "Erf", "Softplus", "Atan", "Asinh", "Gelu", "Mish", "Swish", "Elu", "Celu",
          "Selu", "Exp", "Neg", "Identity", "Sinh", "Cosh")
KINKED = ("Abs", "Relu", "LeakyRelu", "HardSigmoid", "HardSwish", "Shrink", "ThresholdedRelu", "Floor", "Ceil", "Round",
          "Sign", "StopGradient")
REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare",
              "ReduceLogSumExp", "ReduceProd")
SAFE = ("Tanh", "Sin", "Sigmoid", "Neg", "Abs", "Softplus")


# ---- elementwise --------------------------------------------------------------------------------------------------------


@kind(3)
def smooth_unary(m: Maker) -> None:
    """One smooth function."""
    m.emit(m.one_of(SMOOTH), [m.pick()])


@kind(2)
def kinked_unary(m: Maker) -> None:
    """One function with kinks or steps."""
    m.emit(m.one_of(KINKED), [m.pick()])


@kind()
def attributes_of_unary(m: Maker) -> None:
    """Functions with attributes other than the default."""
    op, attributes = m.one_of([("LeakyRelu", {"alpha": 0.25}), ("Elu", {"alpha": 2.0}), ("HardSigmoid", {"alpha": 0.25, "beta": 0.375}),
                               ("Gelu", {"approximate": "tanh"}), ("Celu", {"alpha": 0.5}), ("Shrink", {"bias": 0.25, "lambd": 0.125})])
    m.emit(op, [m.pick()], attributes)


@kind()
def guarded_unary(m: Maker) -> None:
    """A function with a bounded domain, on an operand brought into it."""
    if m.chance(0.5):
        x = m.emit("Add", [m.emit(m.one_of(["Abs", "Exp", "Sigmoid"]), [m.pick()]), 1.25])
        m.emit(m.one_of(["Sqrt", "Log", "Reciprocal", "Acosh"]), [x])
    else:
        x = m.emit("Mul", [m.emit("Tanh", [m.pick()]), 0.9])
        m.emit(m.one_of(["Asin", "Acos", "Atanh", "Tan"]), [x])


@kind(0.4)
def wild_unary(m: Maker) -> None:
    """A function with a bounded domain, anywhere."""
    m.emit(m.one_of(["Sqrt", "Log", "Reciprocal", "Asin", "Acosh", "Atanh"]), [m.pick()])


@kind(4)
def binary(m: Maker) -> None:
    """Arithmetic that broadcasts either way."""
    x = m.pick()
    pair = [x, x if m.chance(0.1) else m.partner(x)]
    m.emit(m.one_of(["Add", "Sub", "Mul", "Max", "Min"]), pair if m.chance(0.5) else pair[::-1])


@kind()
def division(m: Maker) -> None:
    """Division by what is not zero, powers of what is positive."""
    x = m.pick()
    y = m.emit("Add", [m.emit(m.one_of(["Abs", "Exp"]), [m.partner(x)]), 0.5])
    if m.chance(0.6):
        m.emit("Div", [x, y])
    else:
        m.emit("Pow", [y, m.one_of([2.0, 0.5, -1.0, 1.0, 3.0, 0.0]) if m.chance(0.6) else m.emit("Tanh", [x])])


@kind(0.5)
def power(m: Maker) -> None:
    """Integer powers of either sign, remainders."""
    x = m.pick()
    if m.chance(0.6):
        m.emit("Pow", [x, m.one_of([2.0, 3.0, 1.0, 0.0])])
    else:
        m.emit("Mod", [x, m.one_of([2.0, 0.7])], {"fmod": 1})


@kind()
def variadic(m: Maker) -> None:
    """Sums, means and extrema of several operands, some of them the same."""
    x = m.pick()
    operands = [x]
    for _ in range(int(m.rng.integers(0, 3))):
        y = m.partner(x)
        if m.broadcasts(*operands, y):
            operands.append(y)
    m.emit(m.one_of(["Sum", "Mean", "Max", "Min"]), operands)


@kind()
def clip(m: Maker) -> None:
    """Clip with one bound or both."""
    low, high = m.one_of([(-0.5, 0.7), (None, 0.4), (-0.3, None), (0.0, 0.0)])
    m.emit("Clip", [m.pick(), low, high])


@kind()
def slope(m: Maker) -> None:
    """PRelu with a slope of the last extent or of one element; SwiGLU of equals."""
    x = m.pick(low=1)
    m.emit("PRelu", [x, m.leaf(m.one_of([(1,), (x.type.shape or (1,))[-1:]]))])


# ---- booleans, integers, casts --------------------------------------------------------------------------------------------


@kind(2)
def select(m: Maker) -> None:
    """A comparison that chooses between two values."""
    x = m.pick()
    test = m.emit(m.one_of(["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"]), [x, m.partner(x)])
    if m.chance(0.3):
        test = m.emit("Not", [test])
    a, c = m.partner(x), m.partner(x)
    if m.broadcasts(test, a, c):
        m.emit("Where", [test, a, c])


@kind(0.7)
def booleans(m: Maker) -> None:
    """Logic on booleans, and tests for special numbers."""
    if m.chance(0.3):
        m.emit(m.one_of(["IsNaN", "IsInf"]), [m.pick()])
        return
    x = m.pick(dtype=BOOL)
    m.emit(m.one_of(["And", "Or", "Xor", "Equal"]), [x, m.partner(x, BOOL)])


@kind()
def integers(m: Maker) -> None:
    """Integer arithmetic."""
    x = m.pick(dtype=INT64)
    m.emit(m.one_of(["Add", "Sub", "Mul", "Max", "Min", "BitwiseAnd", "BitwiseXor", "Equal", "Less"]), [x, m.partner(x, INT64)])


@kind(0.7)
def integer_division(m: Maker) -> None:
    """Quotients and remainders of integers of either sign."""
    x = m.pick(dtype=INT64)
    m.emit(m.one_of(["Div", "Mod"]), [x, m.constant(np.asarray(m.one_of([2, 3, -2, 1, -1]), np.int64))])


@kind(1.5)
def cast(m: Maker) -> None:
    """A cast to another type and, often, back."""
    source = m.one_of([m.dtype, m.dtype, INT64, BOOL])
    x = m.pick(dtype=source)
    target = dtype_of(m.one_of(["float64", "float32", "float16", "int64", "int32", "bool", "int8", "uint8"]))
    if source == m.dtype and not m.smooth and not target.is_float:
        raise Rejected("the standard leaves the result open")
    x = m.emit("Cast", [x], {"to": target.onnx})
    if m.chance(0.6):
        m.emit("Cast", [x], {"to": m.dtype.onnx})


@kind(0.5)
def extrema(m: Maker) -> None:
    """Places of extrema, and what they pick."""
    m.emit(m.one_of(["ArgMax", "ArgMin"]), [x := m.pick(low=1)],
           {"axis": m.axis(x), "keepdims": int(m.chance(0.5)), "select_last_index": int(m.chance(0.5))})


# ---- reductions -------------------------------------------------------------------------------------------------------------


@kind(3)
def reduction(m: Maker) -> None:
    """A reduction over some axes, all or none."""
    x = m.pick()
    axes = None if m.chance(0.25) or not m.rank(x) else np.array(m.axes(x))
    if axes is not None and m.chance(0.05):
        axes = np.zeros(0, np.int64)
    m.emit(m.one_of(REDUCTIONS), [x, axes], {"keepdims": int(m.chance(0.5)), "noop_with_empty_axes": int(m.chance(0.2))})


@kind(0.3)
def log_sum(m: Maker) -> None:
    """ReduceLogSum of positive numbers."""
    x = m.emit("Add", [m.emit("Abs", [m.pick(low=1)]), 0.5])
    m.emit("ReduceLogSum", [x, np.array(m.axes(x))], {"keepdims": int(m.chance(0.5))})


@kind(0.7)
def cumulative(m: Maker) -> None:
    """A cumulative sum."""
    x = m.pick(low=1)
    m.emit("CumSum", [x, m.constant(np.asarray(m.axis(x), np.int64))],
           {"exclusive": int(m.chance(0.5)), "reverse": int(m.chance(0.5))})


@kind(0.7)
def top(m: Maker) -> None:
    """The largest or smallest entries."""
    x = m.pick(low=1)
    axis = m.axis(x)
    k = int(m.rng.integers(1, max(2, min(m.extents(x, w)[axis] for w in range(WORLDS)) + 1)))
    m.emit("TopK", [x, [k]], {"axis": axis, "largest": int(m.chance(0.5))}, outputs=2)


@kind(1.5)
def softmax(m: Maker) -> None:
    """A softmax along some axis."""
    x = m.pick(low=1)
    m.emit(m.one_of(["Softmax", "LogSoftmax", "Softmax", "Hardmax"]), [x], {"axis": m.axis(x)})


@kind(0.5)
def loss(m: Maker) -> None:
    """A loss of class scores."""
    x = m.pick(low=2)
    dims = list(x.type.shape or ())
    if m.extents(x)[1] != m.extents(x, 1)[1] or not m.extents(x)[1]:
        raise Rejected("no classes")
    classes = m.extents(x)[1]
    if any(not isinstance(d, int) and repr(d) not in ("N", "M", "K") for d in dims):
        raise Rejected("dims")
    labels = m.input(INT64, [dims[0], *dims[2:]], lambda s: np.asarray(m.rng.integers(0, classes, s)))
    attributes = {"reduction": m.one_of(["mean", "sum", "none"]), "ignore_index": m.one_of([None, 0, -1])}
    if m.chance(0.5):
        m.emit("SoftmaxCrossEntropyLoss", [x, labels], attributes, outputs=int(m.rng.integers(1, 3)))
    else:
        m.emit("NegativeLogLikelihoodLoss", [m.emit("LogSoftmax", [x], {"axis": 1}), labels], attributes)


# ---- products ---------------------------------------------------------------------------------------------------------------


@kind(2.5)
def matmul(m: Maker) -> None:
    """A product with a fitting value or a weight."""
    x = m.pick(low=1)
    fits = [v for v in m.known(low=1) if all(
        m.extents(v, w)[-2 if m.rank(v) > 1 else 0] == m.extents(x, w)[-1] for w in range(WORLDS))]
    if fits and m.chance(0.5):
        m.emit("MatMul", [x, m.one_of(fits)])
        return
    last = (x.type.shape or (1,))[-1]
    m.emit("MatMul", [x, m.leaf(m.one_of([(last,), (last, m.dim()), (m.dim(), last, 2)]))])


@kind(0.8)
def transposed_product(m: Maker) -> None:
    """x x^T, or x^T x, through Transpose and MatMul."""
    x = m.pick(rank=2)
    t = m.emit("Transpose", [x], {"perm": (1, 0)})
    m.emit("MatMul", [x, t] if m.chance(0.5) else [t, x])


@kind()
def gemm(m: Maker) -> None:
    """A general product with bias."""
    x = m.pick(rank=2)
    a, c = x.type.shape or (1, 1)
    ta, tb = int(m.chance(0.3)), int(m.chance(0.3))
    inner, rows = (a, c) if ta else (c, a)
    columns = m.dim()
    bias = m.one_of([None, (columns,), (1, columns), (rows, 1), (1,), (), (rows, columns)])
    m.emit("Gemm", [x, m.leaf((columns, inner) if tb else (inner, columns)), None if bias is None else m.leaf(bias)],
           {"alpha": m.one_of([1.0, 0.5]), "beta": m.one_of([1.0, 2.0]), "transA": ta, "transB": tb})


@kind()
def einsum(m: Maker) -> None:
    """An Einstein sum of one operand or two."""
    if m.chance(0.3):
        m.emit("Einsum", [m.pick(rank=2)], {"equation": m.one_of(["ij->ji", "ij->j", "ij->", "ij"])})
        return
    x = m.pick(rank=2)
    a, c = x.type.shape or (1, 1)
    equation, other = m.one_of([("ij,jk->ik", (c, m.dim())), ("ij,ij->i", (a, c)), ("ij,j->i", (c,)), ("ij,kj->ik", (m.dim(), c)),
                                ("ij,i->j", (a,)), ("ij,k->ijk", (m.dim(),)), ("...j,j->...", (c,)), ("ij,jk", (c, m.dim()))])
    m.emit("Einsum", [x, m.leaf(other)], {"equation": equation})


# ---- norms, images ------------------------------------------------------------------------------------------------------------


@kind()
def layer_norm(m: Maker) -> None:
    """Layer or RMS normalization over the last axes."""
    x = m.pick(low=1)
    axis = -int(m.rng.integers(1, m.rank(x) + 1))
    dims = tuple(x.type.shape or ())[axis:]
    if m.chance(0.6):
        m.emit("LayerNormalization", [x, m.leaf(dims), m.leaf(dims) if m.chance(0.7) else None], {"axis": axis})
    else:
        m.emit("RMSNormalization", [x, m.leaf(dims)], {"axis": axis})


@kind(0.6)
def other_norms(m: Maker) -> None:
    """Normalizations over channels."""
    x = m.pick(low=3) if m.chance(0.5) else m.pick(low=2)
    c = (x.type.shape or (1, 1))[1]
    if not isinstance(c, int) and repr(c) not in NAMES:
        raise Rejected("channels")
    if m.rank(x) == 2 or m.chance(0.4):
        variance = m.emit("Add", [m.emit("Abs", [m.leaf((c,))]), 0.3])
        m.emit("BatchNormalization", [x, m.leaf((c,)), m.leaf((c,)), m.leaf((c,)), variance],
               {"training_mode": 0} if m.chance(0.6) else {"training_mode": 1}, outputs=1)
    elif m.chance(0.5):
        m.emit("InstanceNormalization", [x, m.leaf((c,)), m.leaf((c,))])
    else:
        m.emit("LpNormalization", [x], {"axis": m.axis(x), "p": m.one_of([1, 2])})


def filled(m: Maker, op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    """Add a node unless the window does not fit: there the shape inference of the standard library divides wrongly."""
    y = m.emit(op, inputs, attributes)
    if any(0 in m.extents(y, w) for w in range(WORLDS)):
        m.arrays.pop(y)
        m.graph.remove(y.producer)
        raise Rejected("the window does not fit")


@kind(1.2)
def convolution(m: Maker) -> None:
    """A convolution of a small image."""
    rank = m.one_of([3, 4, 4])
    found = [v for v in m.known(rank=rank) if isinstance((v.type.shape or ("", ""))[1], int) and 0 not in m.extents(v)]
    x = m.one_of(found) if found and m.chance(0.7) else m.input(None, [m.dim(), 2, *m.shape(rank - 2)])
    channels = m.extents(x)[1]
    group = channels if m.chance(0.3) else 1
    kernel = [int(m.rng.integers(1, 3)) for _ in range(rank - 2)]
    attributes = {"group": group, "strides": [m.one_of([1, 1, 2]) for _ in kernel], "dilations": [m.one_of([1, 1, 2]) for _ in kernel]}
    if m.chance(0.3):
        attributes["auto_pad"] = m.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
    else:
        attributes["pads"] = [int(p) for p in m.rng.integers(0, 3, 2 * len(kernel))]
    if m.chance(0.75):
        out = group * int(m.rng.integers(1, 3))
        filled(m, "Conv", [x, m.leaf((out, channels // group, *kernel)), m.leaf((out,)) if m.chance(0.5) else None], attributes)
        return
    attributes.pop("auto_pad", None)
    m.emit("ConvTranspose", [x, m.leaf((channels, 2, *kernel)), m.leaf((2 * group,)) if m.chance(0.5) else None], attributes)


@kind()
def pooling(m: Maker) -> None:
    """A pool of a small image."""
    x = m.pick(low=3)
    if 0 in m.extents(x) or 0 in m.extents(x, 1) or m.rank(x) > 4:
        raise Rejected("no image")
    if m.chance(0.3):
        m.emit(m.one_of(["GlobalAveragePool", "GlobalMaxPool"]), [x])
        return
    kernel = [int(m.rng.integers(1, 4)) for _ in range(m.rank(x) - 2)]
    attributes = {"kernel_shape": kernel, "strides": [m.one_of([1, 2]) for _ in kernel], "ceil_mode": int(m.chance(0.3))}
    if m.chance(0.5):
        attributes["pads"] = [int(m.rng.integers(0, k)) for k in kernel] * 2
    if m.chance(0.5):
        filled(m, "MaxPool", [x], attributes)
    else:
        filled(m, "AveragePool", [x], {**attributes, "count_include_pad": int(m.chance(0.5))})


# ---- control flow -----------------------------------------------------------------------------------------------------------------


def expression(m: Maker, b: Builder, values: list[Value], like: Value) -> Value:
    """Return a small expression of the type of ``like`` over values of that type."""
    pool = [v for v in values if v.type == like.type]
    x = m.one_of(pool)
    for _ in range(int(m.rng.integers(1, 4))):
        choice = m.rng.integers(4)
        if choice == 0:
            x = b.add(m.one_of(SAFE), [x])
        elif choice == 1:
            x = b.add(m.one_of(["Add", "Sub", "Mul", "Max"]), [x, m.one_of(pool)])
        elif choice == 2:
            x = b.Mul(x, 0.5)
        else:
            x = b.Where(b.Less(x, m.one_of(pool)), b.Tanh(x), m.one_of(pool))
        pool.append(x)
    return x  # type: ignore[no-any-return]


def formals(body: Graph, values: list[Value]) -> list[Value]:
    """Add one input for each value."""
    return [body.add_input(body.unique_name("a"), v.type) for v in values]


@kind(0.8)
def branch(m: Maker) -> None:
    """An If whose branches compute on values of one type."""
    x = m.pick(dtype=m.one_of([m.dtype, FLOAT64]))
    captures = list(dict.fromkeys([x, *(v for v in m.known(x.type.dtype) if v.type == x.type)][:3]))
    count = int(m.rng.integers(1, 3))
    graphs = {}
    for name in ("then_branch", "else_branch"):
        body = Graph(name)
        inner = formals(body, captures)
        b = Builder(body)
        for k in range(count):
            body.add_output(inner[0] if m.chance(0.1) else expression(m, b, inner, inner[0]), f"r{k}")
        graphs[name] = body
    total = m.emit("ReduceSum", [m.pick()], {"keepdims": 0})
    test = m.emit("Less", [total, 0.3]) if m.chance(0.6) else m.input(BOOL, ())
    m.emit("If", [test], {}, outputs=count, captures=captures, subgraphs=graphs)


@kind(0.8)
def loop(m: Maker) -> None:
    """A Loop with one or two states, a collected value and captures."""
    x = m.pick()
    captures = list(dict.fromkeys([x, *(v for v in m.known() if v.type == x.type)][:2]))
    states = [m.one_of(captures) for _ in range(int(m.rng.integers(1, 3)))]
    body = Graph("body")
    body.add_input("i", Type(INT64, ()))
    condition = body.add_input("c", Type(BOOL, ()))
    inner = formals(body, [*states, *captures])
    b = Builder(body)
    body.add_output(condition, "cond_out")
    for k in range(len(states) + int(m.chance(0.6))):
        body.add_output(expression(m, b, inner, inner[0]), f"r{k}")
    count = len(body.output_entries) - 1
    m.emit("Loop", [np.asarray(int(m.rng.integers(0, 4))), None, *states], {}, outputs=count, captures=captures,
           subgraphs={"body": body})


@kind(0.8)
def scan(m: Maker) -> None:
    """A Scan over one input, forwards or backwards."""
    x = m.pick(low=1)
    axis = int(m.rng.integers(0, m.rank(x)))
    row = list(x.type.shape or ())
    del row[axis]
    state = m.leaf(row)
    if state.type.shape != tuple(row):
        raise Rejected("dims")
    body = Graph("body")
    inner = formals(body, [state, state])
    b = Builder(body)
    count = 1 + int(m.chance(0.7))
    for k in range(count):
        body.add_output(expression(m, b, inner, inner[0]), f"r{k}")
    m.emit("Scan", [state, x], {"num_scan_inputs": 1, "scan_input_axes": (axis,), "scan_input_directions": (int(m.chance(0.3)),),
                                **({"scan_output_directions": (int(m.chance(0.5)),)} if count == 2 else {})},
           outputs=count, subgraphs={"body": body})


@kind(0.3)
def recurrent(m: Maker) -> None:
    """A recurrent layer."""
    x = m.pick(rank=3)
    op, gates = m.one_of([("RNN", 1), ("GRU", 3), ("LSTM", 4)])
    features = (x.type.shape or (1,))[-1]
    direction, count = m.one_of([("forward", 1), ("reverse", 1), ("bidirectional", 2)])
    m.emit(op, [x, m.leaf((count, gates * 2, features)), m.leaf((count, gates * 2, 2)),
                m.leaf((count, gates * 4)) if m.chance(0.5) else None], {"hidden_size": 2, "direction": direction}, outputs=2)
