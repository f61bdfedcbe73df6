"""A small convolutional network on Fashion-MNIST, trained in PyTorch by several of our optimizers and by
AdamW and Adam.

    OUTEROPT_DATA_DIR=data python examples/torch_fashion_mnist.py --out fashion

Ours run once, as they are. AdamW runs at its default and on a small grid of learning rates, as one would tune
it, and counts with every run of that grid. Written to the folder: `curves.csv` (losses and accuracies at each
evaluation) and `curves.png`. About 1,200 steps of 128 images each, under eight minutes in all on two cores;
`--device cuda` for a GPU.

The images come from `fashion_mnist.npz` in OUTEROPT_DATA_DIR, without JAX, or else from `outeropt.data`,
which fetches them once. No validation rows are used to choose anything: the table shows all runs.
"""

import argparse
import csv
import os
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch.nn.functional import cross_entropy

import outeropt.torch


OURS = ("self_tuning", "prodigy", "schedule_free_adamw", "learned:small_fc", "hypergradient:adam")
# These are told how long the run is.
TIMED = ("self_tuning", "learned:")
GRID = (1e-4, 3e-4, 3e-3, 1e-2)


def pixels() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (rows, 28, 28, 1) of bytes and labels, for train and test."""
    file = Path(os.environ.get("OUTEROPT_DATA_DIR", "")) / "fashion_mnist.npz"
    if file.is_file():
        with np.load(file) as arrays:
            return {split: (arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in ("train", "test")}
    from outeropt import data

    splits = data.images("fashion_mnist", train_rows=59_000)
    return {
        name: tuple(np.asarray(splits[name][part]) for part in ("image", "label"))
        for name in ("train", "test")
    }


def network(width: int) -> torch.nn.Module:
    """Two convolutions with pooling, and two dense layers."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, width, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(width, 2 * width, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(49 * 2 * width, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )


def optimizers(ours: list[str], steps: int):
    """By name, a function of the parameters for each run."""
    made = {"adamw (default)": torch.optim.AdamW, "adam (default)": torch.optim.Adam}
    for lr in GRID:
        made[f"adamw {lr:g}"] = lambda params, lr=lr: torch.optim.AdamW(params, lr=lr)
    for name in ours:
        told = {"num_steps": steps} if name.startswith(TIMED) else {}
        made[name] = lambda params, name=name, told=told: outeropt.torch.get(name, params, **told)
    return made


def mode(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Optimizers that evaluate elsewhere than where they train are told which of the two comes."""
    if hasattr(optimizer, name):
        getattr(optimizer, name)()


@torch.no_grad()
def evaluate(model: torch.nn.Module, rows: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, float]:
    """Loss and accuracy."""
    outputs = torch.cat([model(images) for images in rows[0].split(1000)])
    return cross_entropy(outputs, rows[1]).item(), (outputs.argmax(1) == rows[1]).float().mean().item()


def train(make, data, arguments):
    """Rows of the curves of one run."""
    torch.manual_seed(arguments.seed)  # the same start and the same batches for all
    (images, labels), test = data["train"], data["test"]
    model = network(arguments.width).to(arguments.device)
    optimizer = make(model.parameters())
    ours = not type(optimizer).__module__.startswith("torch.")
    draw = torch.Generator().manual_seed(arguments.seed)
    rows, recent, start = [], [], time.perf_counter()
    spent = 0.0
    for step in range(1, arguments.steps + 1):
        batch = torch.randint(len(images), (arguments.batch_size,), generator=draw).to(images.device)
        optimizer.zero_grad()
        loss = cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step(**({"value": loss.detach()} if ours else {}))
        recent.append(loss.detach())
        if step % arguments.eval_every == 0 or step == arguments.steps:
            train_loss = torch.stack(recent).mean().item()
            spent += time.perf_counter() - start
            mode(optimizer, "eval")
            test_loss, accuracy = evaluate(model, test)
            mode(optimizer, "train")
            rows.append((step, train_loss, test_loss, accuracy, spent))
            recent, start = [], time.perf_counter()
    return rows


def picture(curves, ours, path):
    """Training loss and test accuracy by step; ours in colour, the others in greys."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    greys = iter(np.linspace(0.75, 0.3, len(curves) - len(ours)))
    for name, rows in curves.items():
        steps, losses, _, accuracies, _ = zip(*rows)
        style = {"linewidth": 1.8} if name in ours else {"color": str(next(greys)), "linestyle": "--"}
        left.plot(steps, losses, label=name, **style)
        right.plot(steps, accuracies, label=name, **style)
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    right.set(xlabel="step", ylabel="test accuracy", ylim=(max(0.0, right.get_ylim()[1] - 0.2), None))
    figure.legend(*right.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right center")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optimizers", nargs="+", default=list(OURS), help="names of outeropt.torch.names()")
    parser.add_argument("--steps", type=int, default=1200, help="steps of each run")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a step")
    parser.add_argument("--width", type=int, default=8, help="channels of the first convolution")
    parser.add_argument("--eval-every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--test-rows", type=int, default=5000, help="test images of an evaluation")
    parser.add_argument("--seed", type=int, default=0, help="of the network and the batches")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("fashion_mnist"), help="folder for what is written")
    arguments = parser.parse_args()

    data = {}
    for split, (images, labels) in pixels().items():
        rows = slice(None) if split == "train" else slice(arguments.test_rows)
        tensor = torch.tensor(images[rows]).permute(0, 3, 1, 2).float() / 255
        whole = tensor.to(arguments.device), torch.tensor(labels[rows]).long().to(arguments.device)
        data[split] = whole
    curves = {}
    print(f"{'optimizer':22} {'train loss':>10} {'test loss':>10} {'accuracy':>9} {'seconds':>8}")
    for name, make in optimizers(arguments.optimizers, arguments.steps).items():
        curves[name] = train(make, data, arguments)
        _, loss, test_loss, accuracy, seconds = curves[name][-1]
        print(f"{name:22} {loss:10.4f} {test_loss:10.4f} {accuracy:9.4f} {seconds:8.1f}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "curves.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("optimizer", "step", "train_loss", "test_loss", "test_accuracy", "seconds"))
        table.writerows((name, *row) for name, rows in curves.items() for row in rows)
    picture(curves, arguments.optimizers, arguments.out / "curves.png")
    print(f"wrote {arguments.out}/curves.csv and curves.png")


if __name__ == "__main__":
    main()
