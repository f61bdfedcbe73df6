"""A small convolutional network on MNIST, trained in Keras by three of our optimizers, Adam and AdamW.

    KERAS_BACKEND=jax OUTEROPT_DATA_DIR=data python examples/keras_mnist.py --out mnist

Written to the folder: `curves.csv` (losses and accuracies of every epoch) and `curves.png`. Each optimizer
runs once, as it is, from the same weights on the same batches: ours have no learning rate to set, and Keras's
have their defaults. So it shows how they are used, and not who would win after tuning. Four epochs of 20,000
images should take under six minutes in all on two cores; `KERAS_BACKEND=torch` works as well.

The images come from `mnist.npz` in OUTEROPT_DATA_DIR, which `outeropt data get mnist` fetches.
"""

import argparse
import csv
import os
import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator


os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

import outeropt.keras
from outeropt.bench.pictures import style


OURS = ("learned:amalgam-choice-large-7", "learned:small_fc", "prodigy")
THEIRS = {"Keras's Adam": keras.optimizers.Adam, "Keras's AdamW": keras.optimizers.AdamW}


def images(training: int, test: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pixels in [0, 1] (rows, 28, 28, 1) and labels, for train and test."""
    file = Path(os.environ.get("OUTEROPT_DATA_DIR", "")) / "mnist.npz"
    if not file.is_file():
        sys.exit(f"There is no {file}; run outeropt data get mnist, or set OUTEROPT_DATA_DIR to its folder.")
    found = {}
    with np.load(file, allow_pickle=False) as arrays:
        for split, rows in (("train", training), ("test", test)):
            pixels = arrays[f"x_{split}"][:rows].reshape(-1, 28, 28, 1).astype(np.float32) / 255
            found[split] = pixels, arrays[f"y_{split}"][:rows].astype(np.int32)
    return found


def network(width: int) -> keras.Model:
    """Two convolutions with pooling and a dense layer; 18,000 parameters at width 16."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(width, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(2 * width, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def train(optimizer: keras.optimizers.Optimizer, data: dict, arguments: argparse.Namespace) -> list[dict]:
    """What Keras logs of each epoch, and the seconds so far."""
    keras.utils.set_random_seed(arguments.seed)  # the same start and the same batches for all
    model = network(arguments.width)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    rows, start = [], time.perf_counter()
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: rows.append(
            {"epoch": epoch + 1, **logs, "seconds": time.perf_counter() - start}
        )
    )
    model.fit(
        *data["train"],
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        validation_data=data["test"],
        callbacks=[keep],
        verbose=0,
    )
    return rows


def picture(curves: dict[str, list[dict]], path: Path) -> None:
    """Training loss and test accuracy by epoch; ours drawn through, Keras's own dashed."""
    figure, (left, right) = style.panels(2, width=4.6, height=3.2)
    lines = {}
    for place, (name, rows) in enumerate(curves.items()):
        lines[name] = style.look(place).line() | ({"linestyle": "--"} if name in THEIRS else {})
        epochs = [row["epoch"] for row in rows]
        left.plot(epochs, [row["loss"] for row in rows], **lines[name])
        right.plot(epochs, [row["val_accuracy"] for row in rows], **lines[name])
    left.set_yscale("log")
    style.log_ticks(left.yaxis, *left.get_ylim())
    style.label(left, "Training loss", x="epoch")
    style.label(right, "Test accuracy", x="epoch")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.legend(figure, lines)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optimizers", nargs="+", default=list(OURS), help="names of outeropt.keras.names()")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each run")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a step")
    parser.add_argument("--width", type=int, default=16, help="channels of the first convolution")
    parser.add_argument("--train-rows", type=int, default=20_000, help="training images, of 60,000")
    parser.add_argument("--test-rows", type=int, default=10_000, help="test images, of 10,000")
    parser.add_argument("--seed", type=int, default=0, help="of the network and the batches")
    parser.add_argument("--out", type=Path, default=Path("mnist"), help="folder for what is written")
    arguments = parser.parse_args()

    data = images(arguments.train_rows, arguments.test_rows)
    steps = arguments.epochs * -(-len(data["train"][0]) // arguments.batch_size)
    makers = {}
    for name in arguments.optimizers:
        # Learned optimizers with a schedule are told how long the run is.
        timed = {"num_steps": steps} if name.startswith(("learned:", "self_tuning")) else {}
        makers[name] = lambda name=name, timed=timed: outeropt.keras.load(name, **timed)
    makers |= THEIRS
    curves = {}
    print(f"{'optimizer':32} {'train loss':>10} {'test loss':>10} {'accuracy':>9} {'seconds':>8}")
    for name, make in makers.items():
        curves[name] = train(make(), data, arguments)
        last = curves[name][-1]
        numbers = f"{last['loss']:10.4f} {last['val_loss']:10.4f} {last['val_accuracy']:9.4f}"
        print(f"{name:32} {numbers} {last['seconds']:8.1f}", flush=True)

    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "curves.csv").open("w", newline="") as file:
        columns = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds")
        table = csv.writer(file)
        table.writerow(("optimizer", *columns))
        table.writerows(
            (name, *(row[key] for key in columns)) for name, rows in curves.items() for row in rows
        )
    picture(curves, arguments.out / "curves.png")
    print(f"wrote {arguments.out / 'curves.csv'} and curves.png")


if __name__ == "__main__":
    main()
