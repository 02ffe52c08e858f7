"""Checkpointing: the same bits in less memory, in every form that a graph takes."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ir.builder import Builder
from flowgrad.ir.errors import InputError, LimitError
from flowgrad.ir.graph import Array, Graph
from flowgrad.ir.text import format_graph, parse_graph
from flowgrad.ir.types import FLOAT32, Dim, Type
from flowgrad.ir.verify import verify
from flowgrad.model import Model
from flowgrad.passes.checkpoint import RECOMPUTE, parts_of, recompute
from flowgrad.passes.segments import Cutter, nominal_bytes, record
from flowgrad.runtime.numpy_program import NumpyProgram
from flowgrad.tools.maintenance.graph_maker import Sample

BATCH, WIDTH = 32, 16


def chain(layers: int, width: int = WIDTH, batch: int | None = BATCH, activation: str = "Tanh") -> Model:
    """Return a network of equal layers, with a scalar called loss."""
    graph = Graph("chain")
    b = Builder(graph)
    rng = np.random.default_rng(0)
    h = graph.add_input("x", Type(FLOAT32, (Dim.named("N") if batch is None else batch, width)))
    for i in range(layers):
        w = graph.add_constant(rng.normal(0, width**-0.5, (width, width)).astype(np.float32), f"w{i}", "initializer")
        h = b.add(activation, [b.MatMul(h, w)], name=f"h{i}")
    graph.add_output(b.add("ReduceSum", [b.Mul(h, h)], {"keepdims": 0}, name="loss"))
    return Model(graph)


def feeds_of(model: Model, seed: int = 0, extent: int = BATCH) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {v.name: rng.standard_normal([d if isinstance(d, int) else extent for d in v.shape]).astype(v.dtype.numpy)
            for v in model.graph.inputs}


def same(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


def peak(model: Model, **shapes: tuple[int, ...]) -> int:
    return NumpyProgram(model.optimized().graph).plan(shapes).peak_bytes


def again(model: Model) -> list[str]:
    return [n.op for n in model.graph.nodes() if RECOMPUTE in n.metadata]


def measured(model: Model, feeds: dict[str, Array]) -> int:
    """Return the bytes that the second run of a program takes, its memory given up in between."""
    program = NumpyProgram(model.optimized().graph, threads=1)
    program.run(feeds)
    for specialisation in program._executor._kept.values():
        specialisation.first.forget_frames()
    tracemalloc.start()
    program.run(feeds)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_a_chain_takes_memory_with_the_root_of_its_length() -> None:
    peaks = []
    for layers in (12, 48, 192):
        plain = fg.grad(chain(layers, batch=256), "loss", "x")
        small = fg.checkpoint(plain)
        feeds = feeds_of(plain)
        assert same(small(feeds), plain(feeds))
        assert again(small).count("MatMul") < layers
        peaks.append(peak(small))
        assert peaks[-1] < peak(plain)
    assert peaks[1] < 2.5 * peaks[0] and peaks[2] < 2.5 * peaks[1]  # 2, where all else is free


def test_what_is_planned_is_what_is_measured() -> None:
    plain = fg.value_and_grad(chain(40, batch=4096), "loss", "x")
    small = fg.checkpoint(plain)
    feeds = feeds_of(plain)
    for model in (plain, small):
        assert measured(model, feeds) == pytest.approx(peak(model), rel=0.05)
    assert measured(small, feeds) < measured(plain, feeds) / 2


@pytest.mark.parametrize("form", ["msgpack", "onnx", "text", "optimized"])
def test_every_form_keeps_the_marks_the_bits_and_the_peak(form: str, tmp_path: Path) -> None:
    small = fg.checkpoint(fg.value_and_grad(chain(20), "loss", "x"))
    feeds = feeds_of(small)
    if form == "text":
        from flowgrad.ir.text import large_constants

        other = Model(parse_graph(format_graph(small.graph), data=large_constants(small.graph)))
    elif form == "optimized":
        other = small.optimized("stabilize,canonicalize,fold,cse,simplify,canonicalize,cse,dce")
    else:
        path = tmp_path / f"small.{form}"
        (small.save if form == "msgpack" else small.to_onnx)(path)
        other = fg.load(path)
    verify(other.graph)
    assert sorted(op for op in again(other) if op in ("MatMul", "Tanh")) == sorted(
        op for op in again(small) if op in ("MatMul", "Tanh"))
    assert "After" in {n.op for n in other.graph.nodes()}
    assert same(other(feeds), small(feeds))
    assert peak(other) <= 1.05 * peak(small)


def test_names_say_what_is_kept() -> None:
    plain = fg.value_and_grad(chain(12), "loss", "x")
    small = fg.checkpoint(plain, ["h3", "h7"])
    used = {v.name for n in small.graph.nodes() if n.op == "After" for v in n.inputs if v is not None}
    assert {"h3", "x"} <= used and not used & {"h1", "h2", "h4", "h5", "h6"}
    assert same(small(feeds_of(small)), plain(feeds_of(small)))
    with pytest.raises(InputError, match="did you mean 'h3'"):
        fg.checkpoint(plain, ["h33"])
    with pytest.raises(InputError, match="not computed in the forward part"):
        fg.checkpoint(plain, ["x"])


def test_a_budget_is_kept_with_as_little_computed_again_as_fits() -> None:
    plain = fg.grad(chain(30, batch=1024), "loss", "x")
    most, least = peak(plain), peak(fg.checkpoint(plain))
    counts = []
    for budget in np.linspace(least, most - 1, 5).astype(int).tolist():
        small = fg.checkpoint(plain, memory=budget)
        assert peak(small) <= budget
        counts.append(again(small).count("MatMul"))
    assert counts == sorted(counts, reverse=True) and counts[-1] < counts[0]
    assert not again(fg.checkpoint(plain, memory=most))
    with pytest.raises(LimitError, match=f"the least peak is {least:,} bytes") as refused:
        fg.checkpoint(plain, memory=least - 1)
    assert refused.value.code == "memory"
    assert peak(fg.checkpoint(plain, memory="1MiB")) <= 2**20


def test_a_budget_needs_shapes() -> None:
    plain = fg.grad(chain(30, batch=None), "loss", "x")
    with pytest.raises(InputError, match="shapes of 'x'"):
        fg.checkpoint(plain, memory="1GiB")
    shapes = {"x": (512, WIDTH)}
    most = peak(plain, x=(512, WIDTH))
    small = fg.checkpoint(plain, memory=most // 2, shapes=shapes)
    assert peak(small, x=(512, WIDTH)) <= most // 2
    by_dim = fg.checkpoint(plain, memory=most // 2, shapes={"N": 512})
    assert peak(by_dim, x=(512, WIDTH)) == peak(small, x=(512, WIDTH))
    guessed = fg.checkpoint(plain)
    assert peak(guessed, x=(512, WIDTH)) < most
    feeds = feeds_of(plain, extent=7)
    assert same(small(feeds), plain(feeds)) and same(guessed(feeds), plain(feeds))


def test_wrong_calls_say_what_is_wrong() -> None:
    with pytest.raises(InputError, match="holds a gradient"):
        fg.checkpoint(chain(3))
    plain = fg.grad(chain(3), "loss", "x")
    for wrong, match in ((("sqr",), "did you mean 'sqrt'"), (([],), "no policy"), ((["h1"], "x"), "positional")):
        with pytest.raises((InputError, TypeError), match=match):
            fg.checkpoint(plain, *wrong)
    with pytest.raises(InputError, match="without names"):
        fg.checkpoint(plain, ["h1"], memory=1)
    with pytest.raises(InputError, match="memory is a number"):
        fg.checkpoint(plain, memory="much")
    with pytest.raises(InputError, match="no input 'y'"):
        fg.checkpoint(plain, shapes={"y": (1,)})


def test_random_numbers_are_drawn_once() -> None:
    graph = parse_graph("""
    graph @g (%x: f32[64,64]) -> (%loss: f32[]) opset 28 {
      %a: f32[64,64] = Tanh(%x)
      %b: f32[64,64] = Dropout(%a, f32(0.5), true)
      %c: f32[64,64] = Tanh(%b)
      %d: f32[64,64] = Exp(%c)
      %e: f32[64,64] = Dropout(%d, f32(0.5), true)
      %f: f32[64,64] = Tanh(%e)
      %g: f32[64,64] = Sin(%f)
      %h: f32[64,64] = Tanh(%g)
      %loss: f32[] = ReduceSum(%h) {keepdims=0}
    }""")
    plain = fg.value_and_grad(Model(graph), "loss", "x")
    small = fg.checkpoint(plain, ["c", "e", "g"])
    drawn = [n for n in small.graph.nodes() if n.op == "Dropout"]
    assert len(drawn) == 2 and again(small)
    feeds = feeds_of(plain)
    runs = [NumpyProgram(m.optimized().graph, seed=3).run(feeds) for m in (plain, small)]
    assert same(*runs)


def test_derivatives_of_what_is_checkpointed() -> None:
    plain = fg.grad(chain(8), "loss", "x")
    small = fg.checkpoint(plain, ["h2", "h5"])
    twice = [fg.vjp(m, "x_grad", "x", stabilize=False) for m in (plain, small)]
    feeds = feeds_of(twice[0])
    for a, b in itertools.pairwise([m(feeds) for m in twice]):
        np.testing.assert_allclose(a["x_grad_1"], b["x_grad_1"], rtol=1e-4, atol=1e-5)
    along = [fg.jvp(m, "x_grad", "x", stabilize=False) for m in (plain, small)]
    feeds = feeds_of(along[0])
    for a, b in itertools.pairwise([m(feeds) for m in along]):
        np.testing.assert_allclose(a["x_grad_tangent"], b["x_grad_tangent"], rtol=1e-4, atol=1e-5)


def test_products_with_the_hessian_take_less_too() -> None:
    plain = fg.hvp(chain(32, batch=256), "loss", "x")
    small = fg.checkpoint(plain)
    feeds = feeds_of(plain)
    assert same(small(feeds), plain(feeds))
    assert peak(small) < peak(plain) / 2


@np.errstate(all="ignore")
def test_random_graphs() -> None:
    """The gradients of random graphs, cut by the policy and anywhere: the same bits, and never a higher peak."""
    from flowgrad.ir.errors import NotDifferentiableError
    from flowgrad.tools.maintenance.random_graphs import random_graph

    recomputed = 0
    for seed in range(16):
        sample = random_graph(seed)
        try:
            plain = fg.vjp(Model(sample.graph), zero="allow").optimized()
        except NotDifferentiableError:
            continue
        feeds = feeds_with_cotangents(plain, sample)
        shapes = {name: array.shape for name, array in feeds.items()}
        expected = NumpyProgram(plain.graph, seed=1).run(feeds)
        small = fg.checkpoint(plain, shapes=shapes)
        assert peak(small, **shapes) <= peak(plain, **shapes)
        cut = cut_anywhere(plain, np.random.default_rng(seed))
        recomputed += bool(again(cut))
        for model in (small, cut, cut.optimized()):
            verify(model.graph)
            assert same(NumpyProgram(model.graph, seed=1).run(feeds), expected)
    assert recomputed >= 3


def feeds_with_cotangents(plain: Model, sample: Sample) -> dict[str, Array]:
    feeds = dict(sample.feeds[0])
    outputs = Model(sample.graph)(feeds)
    rng = np.random.default_rng(0)
    for (role, of, _), name in plain.roles.items():
        if role == "cotangent":
            feeds[name] = np.asarray(rng.standard_normal(outputs[of].shape)).astype(outputs[of].dtype)
    return feeds


def cut_anywhere(plain: Model, rng: np.random.Generator) -> Model:
    graph = plain.graph.copy()
    parts = parts_of(graph)
    cuts = sorted(set(rng.integers(1, len(parts.forward) + 1, len(parts.forward) // 4).tolist()))
    recompute(graph, parts, Cutter(record(graph, parts, nominal_bytes)).keeping(cuts))
    return Model(graph)


def test_onnxruntime_runs_it_and_keeps_what_is_recomputed(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    import onnx

    small = fg.checkpoint(fg.value_and_grad(chain(20), "loss", "x"))
    small.to_onnx(tmp_path / "small.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", options, providers=["CPUExecutionProvider"])
    feeds = feeds_of(small)
    names = [o.name for o in session.get_outputs()]
    for name, got in zip(names, session.run(None, feeds), strict=True):
        np.testing.assert_allclose(got, small(feeds)[name], rtol=1e-4, atol=1e-5)
    ops = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert ops.count("Tanh") == sum(n.op == "Tanh" for n in small.graph.nodes()) > 20


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flowgrad.tools.cli import main

    source, plain, small, kept = (str(tmp_path / f"{name}.msgpack") for name in ("model", "plain", "small", "kept"))
    chain(30, batch=256).save(source)
    assert main(["grad", source, plain, "--of", "loss"]) == 0
    assert main(["grad", source, small, "--of", "loss", "--checkpoint", "sqrt"]) == 0
    assert "nodes in" in capsys.readouterr().err
    assert main(["grad", source, kept, "--of", "loss", "--checkpoint", "h9,h19"]) == 0
    assert main(["grad", source, str(tmp_path / "none.msgpack"), "--of", "loss", "--checkpoint", "1KiB"]) == 4
    assert "the least peak is" in capsys.readouterr().err
    peaks = []
    for path in (plain, small, kept):
        assert main(["inspect", path, "--json"]) == 0
        peaks.append(json.loads(capsys.readouterr().out)["peak_bytes"])
    assert peaks[1] < peaks[0] / 2 and peaks[2] < peaks[0]


@pytest.mark.parametrize("batch", [1, 3])
def test_scratch_of_convolutions_and_pooling_is_planned(batch: int) -> None:
    graph = parse_graph(f"""
    graph @g (%x: f32[{batch},8,64,64], %w: f32[16,8,3,3]) -> (%loss: f32[]) opset 28 {{
      %c: f32[{batch},16,64,64] = Conv(%x, %w) {{pads=[1,1,1,1]}}
      %r: f32[{batch},16,64,64] = Relu(%c)
      %p: f32[{batch},16,32,32] = MaxPool(%r) {{kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]}}
      %loss: f32[] = ReduceSum(%p) {{keepdims=0}}
    }}""")
    model = fg.grad(Model(graph), "loss", ["x", "w"])
    assert measured(model, feeds_of(model)) == pytest.approx(peak(model), rel=0.05)
