"""``python -m flowgrad.tools.maintenance.at_work``: explanations, attacks and training steps beside PyTorch, Captum, torchattacks.

Needs torch, captum, torchattacks and onnxruntime (torchvision for ``resnet18``). Every row is one story on one model, timed on both
engines and by its peers in turn, in CPU seconds on one thread: medians of rounds. What is computed is compared as well.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.attack import PGD
from flowgrad.explain import IntegratedGradients, Saliency
from flowgrad.ir.graph import Array
from flowgrad.model import Model, load
from flowgrad.transforms.losses import with_loss
from flowgrad.transforms.training import next_inputs, train_step

EXAMPLE = "example: python -m flowgrad.tools.maintenance.at_work --zoo FOLDER --models mlp,lenet --json"
DATA = Path(__file__).resolve().parents[2] / "examples" / "data"
ENGINES = ("numpy", "ort")
ROUND = 0.05
"""CPU seconds of one tool in one round, at least one call."""

EPS, STEP_SIZE, STEPS = 0.1, 0.025, 10
RATE = 1e-3
COMPARED_STEPS = 200

Call = Callable[[], Any]


@dataclass
class Subject:
    """A model in both forms, and a batch for it: ``x`` in 0..1, and for each example the class that the model takes it for."""

    name: str
    model: Model
    net: Any
    x: Array
    labels: Array


@dataclass
class Row:
    """One story on one model: CPU milliseconds a call by tool, and how far the results are apart."""

    model: str
    story: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The time of the better engine over that of plain PyTorch."""
        return min(self.milliseconds[e] for e in ENGINES) / self.milliseconds["torch"]


# ---- subjects -------------------------------------------------------------------------------------------------------------


def _nets() -> dict[str, Callable[[], Any]]:
    """Return what makes each network in PyTorch, with the names that weights have in its file."""
    from torch import nn

    class Mlp(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(n, m) for n, m in ((12, 32), (32, 24), (24, 16), (16, 5))])
            self.acts = nn.ModuleList([nn.GELU(), nn.SiLU(), nn.ELU(), nn.Identity()])

        def forward(self, x: Any) -> Any:
            for layer, activation in zip(self.layers, self.acts, strict=True):
                x = activation(layer(x))
            return x

    class Lenet(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.c1, self.c2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
            self.f1, self.f2, self.f3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)

        def forward(self, x: Any) -> Any:
            x = nn.functional.max_pool2d(self.c1(x).tanh(), 2)
            x = nn.functional.avg_pool2d(self.c2(x).tanh(), 2).flatten(1)
            return self.f3(self.f2(self.f1(x).tanh()).sigmoid())

    def cnn() -> Any:
        return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
                             nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))

    return {"mlp": Mlp, "lenet": Lenet, "cnn": cnn}


def subject(name: str, batch: int, zoo: Path | None) -> Subject:
    """Return a model called ``name``: ``cnn``, ``resnet18``, or ``mlp`` and ``lenet`` of the folder ``zoo``."""
    import torch

    if name == "resnet18":
        model, net = _resnet()
    else:
        if name != "cnn" and zoo is None:
            raise SystemExit(f"{name} lies in a zoo of models: say where by --zoo FOLDER")
        model = load(DATA / "cnn.onnx" if name == "cnn" or zoo is None else zoo / name / "model.onnx")
        net = _nets()[name]()
        weights = model.state_dict()
        net.load_state_dict({n: torch.tensor(weights[n]) for n in net.state_dict()})
    if name == "cnn":
        x = (np.load(DATA / "digits.npz")["images"][-batch:, None] / 16).astype(np.float32)
    else:
        extents = [n for n in model.graph.inputs[0].shape[1:] if isinstance(n, int)]
        x = np.random.default_rng(0).random((batch, *extents), np.float32)
    labels = model({model.graph.inputs[0].name: x})[model.graph.output_entries[0].name].argmax(1)
    return Subject(name, model, net.eval(), x, labels)


def _resnet() -> tuple[Model, Any]:
    """Return torchvision's ResNet-18, with random weights, as a file of dynamic batch and as it is."""
    import io

    import torch
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None).eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(2, 3, 224, 224),), file, input_names=["image"], output_names=["logits"], dynamo=False,
                          dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}})
    return load(file.getvalue()), net


# ---- stories --------------------------------------------------------------------------------------------------------------


def saliency(on: Subject) -> tuple[dict[str, Call], dict[str, float]]:
    """Return the tools for |d logit / d x|, and their largest differences from PyTorch's relative to its largest element."""
    import captum.attr

    x, labels = _tensors(on)

    def torch_saliency() -> Any:
        leaf = x.clone().requires_grad_()
        return _grad(on.net(leaf).gather(1, labels[:, None]).sum(), leaf).abs()

    peer = captum.attr.Saliency(on.net)
    tools: dict[str, Call] = {"torch": torch_saliency, "captum": lambda: peer.attribute(x.clone().requires_grad_(), labels)}
    for engine in ENGINES:
        tools[engine] = _later(Saliency(on.model, engine=engine, threads=1).attribute, on.x, on.labels)
    return tools, _differences(tools)


def integrated(on: Subject) -> tuple[dict[str, Call], dict[str, float]]:
    """Return the tools for integrated gradients of 20 steps, and their relative differences from Captum's."""
    import captum.attr

    x, labels = _tensors(on)
    peer = captum.attr.IntegratedGradients(on.net)
    tools: dict[str, Call] = {"torch": lambda: peer.attribute(x, target=labels, n_steps=20, internal_batch_size=len(x)).detach()}
    for engine in ENGINES:
        method = IntegratedGradients(on.model, engine=engine, threads=1)
        tools[engine] = _later(method.attribute, on.x, on.labels, n_steps=20)
    return tools, _differences(tools)


def attack(on: Subject) -> tuple[dict[str, Call], dict[str, float]]:
    """Return the tools for ten projected steps, and the shares of examples that change their class."""
    import torch
    import torchattacks

    x, labels = _tensors(on)

    def torch_attack() -> Any:
        loss = torch.nn.CrossEntropyLoss()
        moved = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
        for _ in range(STEPS):
            moved.requires_grad_()
            gradient = _grad(loss(on.net(moved), labels), moved)
            moved = moved.detach() + STEP_SIZE * gradient.sign()
            moved = (x + (moved - x).clamp(-EPS, EPS)).clamp(0, 1)
        return moved

    peer = torchattacks.PGD(on.net, eps=EPS, alpha=STEP_SIZE, steps=STEPS)
    tools: dict[str, Call] = {"torch": torch_attack, "torchattacks": lambda: peer(x, labels)}
    for engine in ENGINES:
        tools[engine] = _later(PGD(on.model, EPS, STEP_SIZE, STEPS, engine=engine, threads=1), on.x, on.labels)
    moved = {name: torch.from_numpy(np.array(tool())) for name, tool in tools.items()}
    return tools, {name: float((on.net(images).argmax(1) != labels).float().mean()) for name, images in moved.items()}


def training(optimizer: str) -> Callable[[Subject], tuple[dict[str, Call], dict[str, float]]]:
    """Return the story of one step of training: its tools, and how far the first losses are from PyTorch's."""

    def story(on: Subject) -> tuple[dict[str, Call], dict[str, float]]:
        import torch

        x, labels = _tensors(on)

        def torch_steps() -> Call:
            net = copy.deepcopy(on.net)
            made = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](net.parameters(), lr=RATE)

            def step() -> float:
                made.zero_grad()
                loss = torch.nn.functional.cross_entropy(net(x), labels)
                loss.backward()
                made.step()
                return float(loss)

            return step

        makers: dict[str, Callable[[], Call]] = {"torch": torch_steps}
        for engine in ENGINES:
            makers[engine] = _later(_steps, on, optimizer, engine)
        curves = {name: _curve(make()) for name, make in makers.items()}
        gaps = {name: float(np.abs(curve - curves["torch"]).max()) for name, curve in curves.items()}
        return {name: make() for name, make in makers.items()}, gaps

    return story


def _steps(on: Subject, optimizer: str, engine: str) -> Call:
    """Return a step of training that goes on from where the last call ended, and returns the loss."""
    output = on.model.graph.output_entries[0].name
    step = train_step(with_loss(on.model, "softmax_cross_entropy", output, "label"), optimizer, of="loss", learning_rate=RATE)
    program, following = step.compile(engine, 1), next_inputs(step)
    feeds: dict[str, Array] = {on.model.graph.inputs[0].name: on.x, "label": on.labels}

    def call() -> float:
        result = program.run(feeds)
        feeds.update({following[name]: array for name, array in result.items() if name in following})
        return float(result["loss"])

    return call


def _curve(step: Call) -> Array:
    return np.array([step() for _ in range(COMPARED_STEPS)])


STORIES: Mapping[str, Callable[[Subject], tuple[dict[str, Call], dict[str, float]]]] = {
    "saliency": saliency, "integrated gradients": integrated, "attack": attack, "sgd": training("sgd"), "adam": training("adam"),
}


def _tensors(on: Subject) -> tuple[Any, Any]:
    import torch

    return torch.from_numpy(on.x), torch.from_numpy(on.labels)


def _grad(of: Any, wrt: Any) -> Any:
    import torch

    return torch.autograd.grad(of, wrt)[0]


def _later(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Call:
    return lambda: function(*arguments, **keywords)


def _differences(tools: Mapping[str, Call]) -> dict[str, float]:
    found = {name: np.asarray(tool().detach() if name in ("torch", "captum") else tool()) for name, tool in tools.items()}
    reference = found["torch"]
    return {name: float(np.abs(array - reference).max() / np.abs(reference).max()) for name, array in found.items()}


# ---- timing ---------------------------------------------------------------------------------------------------------------


def race(tools: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Return the median CPU milliseconds of a call of each tool: every round times each tool for a while, in turn."""
    counts = {name: max(1, int(ROUND / max(_seconds(tool, 2), 1e-6))) for name, tool in tools.items()}
    times: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(rounds):
        for name, tool in tools.items():
            times[name].append(_seconds(tool, counts[name]))
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def _seconds(tool: Call, count: int) -> float:
    started = time.process_time()
    for _ in range(count):
        tool()
    return (time.process_time() - started) / count


def measure(on: Subject, story: str, rounds: int) -> Row:
    """Return the row of a story on a model."""
    tools, agreement = STORIES[story](on)
    return Row(on.name, story, race(tools, rounds), agreement)


def line(row: Row) -> str:
    """Return a row as text."""
    torch_ms = row.milliseconds["torch"]
    times = "  ".join(f"{name} {ms:.3f} ms ({ms / torch_ms:.2f})" for name, ms in row.milliseconds.items())
    apart = " ".join(f"{name} {number:.2g}" for name, number in row.agreement.items())
    return f"{row.model:9} {row.story:21} {times}  | {apart}"


def main(argv: Sequence[str] | None = None) -> int:
    """Time the stories and print a row for each."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m flowgrad.tools.maintenance.at_work", epilog=EXAMPLE,
                                     description="Time explanations, attacks and training steps beside PyTorch, on one thread.")
    parser.add_argument("--models", default="cnn", metavar="A,B", help="cnn, resnet18, and with --zoo mlp, lenet (default cnn)")
    parser.add_argument("--stories", default=",".join(STORIES), metavar="A,B", help="which ones (default all)")
    parser.add_argument("--zoo", type=Path, metavar="FOLDER", help="where mlp/model.onnx and lenet/model.onnx are")
    parser.add_argument("--batch", type=int, default=64, help="examples at a time (default 64)")
    parser.add_argument("--rounds", type=int, default=9, help="of timing (default 9)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for name in arguments.models.split(","):
        on = subject(name, arguments.batch, arguments.zoo)
        for story in arguments.stories.split(","):
            rows.append(measure(on, story, arguments.rounds))
            if not arguments.json:
                print(line(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps([{**vars(row), "ratio": row.ratio} for row in rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
