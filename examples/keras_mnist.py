"""A small convolutional network on MNIST, trained in Keras by some of our optimizers and by its own Adam and
AdamW.

    OUTEROPT_DATA_DIR=data KERAS_BACKEND=jax python examples/keras_mnist.py --out mnist

All run once, as they are, from the same weights on the same batches. Written to the folder: `curves.csv`
(losses and accuracies at each evaluation) and `curves.png`. 1,500 steps of 128 images each, under three
minutes in all on two cores; KERAS_BACKEND=torch for the same on PyTorch.

The images come from `mnist.npz` in OUTEROPT_DATA_DIR, or else from `outeropt.data`, which fetches them once.
Nothing is chosen by what the table shows.
"""

import argparse
import csv
import os
import time
from pathlib import Path

import matplotlib
import numpy as np


os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

import outeropt.keras


OURS = ("learned:amalgam-choice-large-7", "learned:small_fc", "prodigy", "schedule_free_adamw")
THEIRS = {"adam (default)": keras.optimizers.Adam, "adamw (default)": keras.optimizers.AdamW}


def pixels() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (rows, 28, 28, 1) of bytes and labels, for train and test."""
    file = Path(os.environ.get("OUTEROPT_DATA_DIR", "")) / "mnist.npz"
    if file.is_file():
        with np.load(file) as arrays:
            return {split: (arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in ("train", "test")}
    from outeropt import data

    splits = data.images("mnist", train_rows=59_000)
    return {
        name: tuple(np.asarray(splits[name][part]) for part in ("image", "label"))
        for name in ("train", "test")
    }


def network(width: int) -> keras.Model:
    """Two convolutions with strides, and a dense layer."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(width, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(2 * width, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


class Batches(keras.utils.PyDataset):
    """Batches drawn with replacement, other ones in each epoch and the same ones in each run."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, size: int, length: int, seed: int):
        super().__init__()
        self.images, self.labels = images, labels
        self.size, self.length = size, length
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng((self.seed, self.epoch, index))
        rows = draw.integers(len(self.images), size=self.size)
        return self.images[rows], self.labels[rows]

    def on_epoch_end(self) -> None:
        self.epoch += 1


class Clock(keras.callbacks.Callback):
    """Seconds spent on training by the end of each epoch, without evaluation."""

    def __init__(self):
        super().__init__()
        self.spent: list[float] = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_test_begin(self, logs=None):
        self.spent.append((self.spent or [0.0])[-1] + time.perf_counter() - self.start)


def train(optimizer: keras.optimizers.Optimizer, data, arguments) -> list[tuple]:
    """Rows of the curves of one run."""
    keras.utils.set_random_seed(arguments.seed)  # the same start for all
    model = network(arguments.width)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    every = arguments.eval_every
    clock = Clock()
    ours = [outeropt.keras.EvaluationPoint()] if isinstance(optimizer, outeropt.keras.KerasOptimizer) else []
    found = model.fit(
        Batches(*data["train"], arguments.batch_size, every, arguments.seed),
        epochs=arguments.steps // every,
        validation_data=data["test"],
        validation_batch_size=1000,
        callbacks=[clock, *ours],
        verbose=0,
    ).history
    steps = range(every, arguments.steps + 1, every)
    return list(zip(steps, found["loss"], found["val_loss"], found["val_accuracy"], clock.spent))


def picture(curves, path):
    """Training loss and test accuracy by step; ours in colour, the others in greys."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    greys = iter(np.linspace(0.7, 0.35, len(THEIRS)))
    for name, rows in curves.items():
        steps, losses, _, accuracies, _ = zip(*rows)
        style = {"color": str(next(greys)), "linestyle": "--"} if name in THEIRS else {"linewidth": 1.8}
        left.plot(steps, losses, label=name, **style)
        right.plot(steps, accuracies, label=name, **style)
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    right.set(xlabel="step", ylabel="test accuracy", ylim=(max(0.0, right.get_ylim()[1] - 0.1), None))
    figure.legend(*right.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right center")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optimizers", nargs="+", default=list(OURS), help="names for outeropt.keras.load")
    parser.add_argument("--steps", type=int, default=1500, help="steps of each run, a multiple of eval-every")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a step")
    parser.add_argument("--width", type=int, default=8, help="channels of the first convolution")
    parser.add_argument("--eval-every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--test-rows", type=int, default=5000, help="test images of an evaluation")
    parser.add_argument("--seed", type=int, default=0, help="of the network and the batches")
    parser.add_argument("--out", type=Path, default=Path("keras_mnist"), help="folder for what is written")
    arguments = parser.parse_args()
    if arguments.steps % arguments.eval_every:
        parser.error(f"--steps {arguments.steps} is not a multiple of --eval-every {arguments.eval_every}")

    data = {}
    for split, (images, labels) in pixels().items():
        rows = slice(None) if split == "train" else slice(arguments.test_rows)
        data[split] = images[rows].astype("float32"), labels[rows].astype("int32")
    runs = {name: lambda name=name: load(name, arguments.steps) for name in arguments.optimizers} | THEIRS
    curves = {}
    print(f"{'optimizer':32} {'train loss':>10} {'test loss':>10} {'accuracy':>9} {'seconds':>8}")
    for name, make in runs.items():
        curves[name] = train(make(), data, arguments)
        _, loss, test_loss, accuracy, seconds = curves[name][-1]
        print(f"{name:32} {loss:10.4f} {test_loss:10.4f} {accuracy:9.4f} {seconds:8.1f}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "curves.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("optimizer", "step", "train_loss", "test_loss", "test_accuracy", "seconds"))
        table.writerows((name, *row) for name, rows in curves.items() for row in rows)
    picture(curves, arguments.out / "curves.png")
    print(f"wrote {arguments.out}/curves.csv and curves.png")


def load(name: str, steps: int) -> keras.optimizers.Optimizer:
    """One of ours, which is told how long the run is."""
    return outeropt.keras.load(name, num_steps=steps)


if __name__ == "__main__":
    main()
