"""Bias against cost of hypergradients: every tuner's estimate against the exact derivative of the whole run.

    python benchmarks/hypergradients.py        # tables and docs/images/hypergradients.png; four minutes

Two tasks are trained at fixed hyperparameters, from learning rates decades apart. At several points of each
run every method says how the validation loss depends on learning rate, weight decay and momentum (`b1` of
AdamW), in the coordinates that they are tuned in (log10, log10, logit). The truth is the derivative of the
validation loss there by hyperparameters that were constant from the first step on: forward mode over the
whole run so far. The validation loss is that of all validation rows, for the truth and for all methods, so
that what differs is the horizon alone; the last column of the table draws a minibatch, as tuning does.

Costs are counted in gradients of the loss on one minibatch and for one tuning, beside the ten of the
training steps: a product with the Hessian is two, the gradient of the validation loss one. One-pass takes
`2 L - 1` of them for `L` terms; conjugate gradients `4 n + 3` for `n` iterations; a window of `W` steps
`4 W + 1` (forward, once more in pieces, and twice on the way back); forward mode two for each leaf and step,
and one. Microseconds are of one compiled loop over all points, with a minibatch as validation data.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from outeropt import Optimizer, Task, optimizers, tasks
from outeropt.bench.pictures import style
from outeropt.compiling import for_loops
from outeropt.selftuning import ForwardMode, OnePass, Unrolled
from outeropt.selftuning.onepass.tuner import Point, Step, Tuner
from outeropt.selftuning.onepass.unrolled import Window


SEEDS, POINTS, EVERY, LONGEST = 3, (50, 100, 200, 500, 1000), 10, 50


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task, the optimizer that trains it, and the learning rates of its runs."""

    task: str
    base: str
    leaves: dict[str, float]
    rates: tuple[float, ...]

    def optimizer(self, rate: float) -> Optimizer:
        return optimizers.get(self.base, learning_rate=rate, **self.leaves)

    @property
    def tuned(self) -> tuple[str, ...]:
        return ("learning_rate", *(name.removeprefix("inner.") for name in self.leaves))


PROBLEMS = (
    Problem(
        "UCI_Energy", "heavy_ball", {"weight_decay": 1e-3, "momentum": 0.9}, (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    ),
    Problem(
        "ImageMLP_FashionMnist8_Relu32",
        "adamw",
        {"weight_decay": 1e-2, "b1": 0.9},
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    ),
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A tuner, the family that it is drawn with, and its cost in gradients."""

    family: str
    build: Callable[[Optimizer, tuple[str, ...]], Tuner]
    cost: int
    decay: float | None = None


def methods(leaves: int) -> dict[str, Method]:
    """The methods by name; leaves are counted for the cost of forward mode."""
    found = {}
    for terms in (1, 3, 5, 9, 21):

        def one(base, tune, terms=terms):
            return OnePass(base, tune, lookback=terms)

        found[f"one-pass, {terms}"] = Method("one-pass", one, 2 * terms - 1)
    for terms in (1, 5, 9):

        def state(base, tune, terms=terms):
            return OnePass(base, tune, lookback=terms, through="state")

        found[f"one-pass with state, {terms}"] = Method("one-pass with state", state, 2 * terms - 1)

    def solved(base, tune):
        return OnePass(base, tune, lookback=20, solver="conjugate_gradient")

    found["conjugate gradients, 20"] = Method("conjugate gradients", solved, 83)
    for window in (1, 5, 10, 50):

        def unrolled(base, tune, window=window):
            return Unrolled(base, tune, window=window, every=max(window, EVERY))

        found[f"unrolled, {window}"] = Method("unrolled", unrolled, 4 * window + 1)
    for decay in (0.9, 0.99, 1.0):

        def forward(base, tune, decay=decay):
            return ForwardMode(base, tune, decay=decay)

        cost = 2 * leaves * EVERY + 1
        found[f"forward mode, decay {decay:g}"] = Method("forward mode", forward, cost, decay)
    return found


class Place(NamedTuple):
    """A point of a run, with all that any method needs to know there.

    Attributes:
      point: coordinates of the leaves.
      seed: of the run.
      number: of the step.
      params: before the step.
      state: the base optimizer's state there.
      windows: parameters and state at the last steps, oldest first, for the windows that are unrolled.
      forward: derivatives carried along, by decay.
      loss: training loss at the point.
      first: training loss at the first step.
    """

    point: Point
    seed: Any
    number: Any
    params: Any
    state: Any
    windows: Any
    forward: Any
    loss: Any
    first: Any


class Problems:
    """One problem's task and base optimizer, with the functions that a training loop would offer."""

    def __init__(self, problem: Problem):
        self.problem, self.task = problem, tasks.get(problem.task)
        self.base = problem.optimizer(problem.rates[0])
        self.methods = methods(len(problem.tuned))
        self.tuners = {name: one.build(self.base, problem.tuned) for name, one in self.methods.items()}

    def context(self, seed: Any, number: Any, full: bool) -> dict[str, Any]:
        """What the loop offers at a step: losses on its minibatch, on earlier ones, on validation rows."""
        train, valid = (jax.random.fold_in(jax.random.key(place), seed) for place in (0, 1))

        def loss(params, batch):
            return self.task.loss(params, None, batch, None)[0]

        def value_at(params, number):
            return loss(params, self.task.batch("train", jax.random.fold_in(train, number)))

        rows = validation(self.task) if full else self.task.batch("valid", jax.random.fold_in(valid, number))
        return {
            "value_at": value_at,
            "value_fn": lambda params: value_at(params, number),
            "valid_fn": lambda params: loss(params, rows),
            "step": number,
        }

    def step(self, place: Place, full: bool) -> Step:
        """The step at a place."""
        context = self.context(place.seed, place.number, full)
        value, grads = jax.value_and_grad(context["value_fn"])(place.params)
        context |= {"value": value, "grad": grads}
        tuner = next(iter(self.tuners.values()))
        updates, _ = tuner.play(place.point, grads, place.state, place.params, context)
        moved = jax.tree.map(jnp.add, place.params, updates)
        return Step(place.params, grads, place.state, moved, place.number, context)

    def forward_tuners(self) -> dict[str, Tuner]:
        """Those that carry derivatives along."""
        return {name: self.tuners[name] for name, one in self.methods.items() if one.decay is not None}

    def run(self, point: Point, seed: Any) -> Place:
        """Trains once; the places at `POINTS`, stacked."""
        params, _ = self.task.init(jax.random.fold_in(jax.random.key(2), seed))
        tuners = self.forward_tuners()
        base = next(iter(tuners.values())).base_at(point)
        state = base.init(params, num_steps=POINTS[-1])
        forward = {name: one.begin(params, state) for name, one in tuners.items()}
        nothing = Place(point, seed, jnp.int32(0), params, state, (), forward, 0.0, jnp.float32(jnp.inf))

        def step(place, number):
            now = self.step(place._replace(number=number), full=False)
            forward = {name: one.remember(place.forward[name], now, point) for name, one in tuners.items()}
            _, state = base.update(now.grads, place.state, place.params, **now.context)
            value = now.context["value"]
            first = jnp.where(number == 0, value, place.first)
            seen = place._replace(number=number, forward=forward, loss=value, first=first)
            return Place(point, seed, number, now.moved, state, (), forward, value, first), seen

        _, seen = jax.lax.scan(
            step, nothing._replace(loss=jnp.float32(0)), jnp.arange(POINTS[-1], dtype=jnp.int32)
        )
        ends = np.array(POINTS) - 1
        windows = np.stack([ends - back for back in range(LONGEST)], axis=1)
        took = jax.tree.map(lambda leaf: leaf[ends], seen)
        return took._replace(windows=jax.tree.map(lambda leaf: leaf[windows], (seen.params, seen.state)))

    def places(self) -> Place:
        """All points of all runs, by run and point."""
        found, run = [], jax.jit(self.run, compiler_options=for_loops(jax.devices()[0].platform))
        for rate in self.problem.rates:
            tuner = OnePass(self.problem.optimizer(rate), self.problem.tuned)
            params, _ = self.task.init(jax.random.key(0))
            point = tuner.init(params).point
            found += [jax.device_get(run(point, jnp.int32(seed))) for seed in range(SEEDS)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found)

    def estimate(self, name: str, place: Place, full: bool) -> jax.Array:
        """A method's hypergradient at a place."""
        tuner, one, step = self.tuners[name], self.methods[name], self.step(place, full)
        memory = ()
        if isinstance(tuner, Unrolled):
            memory = Window(*jax.tree.map(lambda leaf: leaf[tuner.window - 1], place.windows))
        if one.decay is not None:
            memory = place.forward[name]
        return tuner.hypergradient(place.point, step, memory).shared

    def carried(self, name: str, place: Place) -> Any:
        """What forward mode does at each step beside."""
        tuner = self.tuners[name]
        return tuner.remember(place.forward[name], self.step(place, False), place.point)


def validation(task: Task) -> Any:
    """All validation rows; a full batch is one already."""
    data = getattr(task, "data", None)
    splits = getattr(data, "splits", None)
    return task.batch("valid", jax.random.key(0)) if splits is None else splits["valid"]


def over(function: Callable[[Place], Any], places: Place) -> tuple[Any, float]:
    """A function of all places as one compiled loop: results, and the least microseconds of one of three."""

    def loop(places):
        return jax.lax.map(function, places)

    compiled = jax.jit(loop, compiler_options=for_loops(jax.devices()[0].platform)).lower(places).compile()
    found, took = None, np.inf
    for _ in range(3):
        began = time.perf_counter()
        found = jax.block_until_ready(compiled(places))
        took = min(took, time.perf_counter() - began)
    return jax.device_get(found), 1e6 * took / len(places.number)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a method said at all points, and what it cost.

    Attributes:
      full: hypergradients with all validation rows, (points, leaves).
      drawn: the same with a minibatch of them.
      micros: microseconds of one tuning.
    """

    full: np.ndarray
    drawn: np.ndarray
    micros: float

    def finite(self) -> "Measured":
        """With 0 for what is not finite: a method that says nothing agrees with nothing."""
        full, drawn = (np.nan_to_num(values, posinf=0, neginf=0) for values in (self.full, self.drawn))
        return Measured(full, drawn, self.micros)


def measured(problems: Problems, places: Place) -> dict[str, Measured]:
    """Every method at all points."""
    # What all share is the step itself; it is no cost of tuning.
    _, step = over(lambda place: problems.step(place, False).moved, places)
    found = {}
    for name, one in problems.methods.items():
        full, _ = over(lambda place, name=name: problems.estimate(name, place, True), places)
        drawn, micros = over(lambda place, name=name: problems.estimate(name, place, False), places)
        if one.decay is not None:
            _, each = over(lambda place, name=name: problems.carried(name, place), places)
            micros += EVERY * (each - step)
        found[name] = Measured(np.asarray(full, float), np.asarray(drawn, float), micros - step)
    return found


def cosines(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Cosines of rows; 0 where either is nothing."""
    lengths = np.linalg.norm(values, axis=1) * np.linalg.norm(truth, axis=1)
    return np.divide((values * truth).sum(axis=1), lengths, out=np.zeros(len(values)), where=lengths > 0)


def agreement(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share of points at which the signs are the same, by leaf."""
    return (np.sign(values) == np.sign(truth)).mean(axis=0)


EXACT = "forward mode, decay 1"


def kept(places: Place, found: dict[str, Measured]) -> np.ndarray:
    """Points of runs that are still runs: the training loss has not doubled, and the truth is finite."""
    return (places.loss <= 2 * places.first) & np.isfinite(found[EXACT].full).all(axis=1)


def resampled(values: np.ndarray, good: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean over points, by a bootstrap over runs: the points of a run are no strangers.

    Args:
      values: one for each point that is kept.
      good: which points are kept, by run and point.
    """
    sums, counts = np.zeros(good.shape), good.reshape(-1, len(POINTS)).sum(axis=1)
    sums[good] = values
    sums = sums.reshape(-1, len(POINTS)).sum(axis=1)
    drawn = np.random.default_rng(0).integers(len(counts), size=(2000, len(counts)))
    means = sums[drawn].sum(axis=1) / np.maximum(counts[drawn].sum(axis=1), 1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def table(problems: Problems, found: dict[str, Measured], good: np.ndarray) -> None:
    """Prints one task's table."""
    truth, tuned = found[EXACT].full[good], problems.problem.tuned
    head = ["method", "gradients", "us", "cosine, mean", *(f"sign, {name}" for name in tuned)]
    head += ["learning rate: size / truth"]
    # Where a batch is all rows, a minibatch says the same.
    minibatches = not np.array_equal(found[EXACT].full, found[EXACT].drawn)
    head += ["sign, learning rate, minibatch"] * minibatches
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, one in found.items():
        full, drawn = one.full[good], one.drawn[good]
        cosine = cosines(full, truth)
        low, high = resampled(cosine, good)
        ratio = np.median(np.abs(full[:, 0]) / np.maximum(np.abs(truth[:, 0]), 1e-30))
        cells = [str(problems.methods[name].cost), f"{one.micros:.0f}"]
        cells += [f"{cosine.mean():.2f} ({low:.2f} to {high:.2f})"]
        cells += [f"{share:.2f}" for share in agreement(full, truth)]
        cells += [f"{ratio:.2g}", *[f"{agreement(drawn, truth)[0]:.2f}"] * minibatches]
        print(f"| {name} | {' | '.join(cells)} |")


BIAS = ("one-pass, 1", "one-pass, 5", "one-pass with state, 9", "unrolled, 10", "unrolled, 50", EXACT)


def solved(problem: Problem) -> tuple[Problems, dict[str, Measured], np.ndarray]:
    """Trains and measures one problem: what every method says, and which points are kept."""
    problems = Problems(problem)
    # Runs and points as one axis.
    places = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), problems.places())
    found = measured(problems, places)
    return problems, {name: one.finite() for name, one in found.items()}, kept(places, found)


def bias(problem: Problem, found: dict[str, Measured], good: np.ndarray) -> None:
    """Prints at which share of the points of each learning rate a higher one would be better."""
    rows = good.reshape(len(problem.rates), -1)
    print(f"| raises the learning rate | {' | '.join(f'{rate:g}' for rate in problem.rates)} |")
    print(f"|{'---|' * (len(problem.rates) + 1)}")
    for name in BIAS:
        raised = (found[name].full[:, 0] < 0).reshape(rows.shape)
        cells = [f"{up[row].mean():.2f}" if row.any() else "" for up, row in zip(raised, rows)]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"| points | {' | '.join(str(row.sum()) for row in rows)} |")


LABELS = {
    "one-pass": (0, 5),
    "one-pass with state": (0, -11),
    "conjugate gradients": (0, 6),
    "unrolled": (8, -9),
    "forward mode": (12, -2.5),
}
"""Where the numbers of each family stand, in points from their markers."""


def panel(
    ax: Axes, problems: Problems, values: Callable[[str], np.ndarray], good: np.ndarray
) -> dict[str, dict]:
    """Draws one measure on one task, a line for each family of methods; the lines of the legend."""
    lines = {}
    for place, family in enumerate(LABELS):
        names = [name for name, one in problems.methods.items() if one.family == family and name != EXACT]
        look = style.look(place)
        line = {**look.line(), "marker": look.marker, "linewidth": 1.6}
        # A few percent apart, so that families of equal cost do not hide each other.
        x = [problems.methods[name].cost * 1.05 ** (place - 1) for name in names]
        each = [values(name) for name in names]
        y = [one.mean() for one in each]
        ax.vlines(
            x, *zip(*(resampled(one, good) for one in each)), color=line["color"], linewidth=1, alpha=0.4
        )
        ax.plot(x, y, markersize=5.5, markeredgecolor="white", markeredgewidth=0.7, **line)
        for name, at in zip(names, zip(x, y)):
            text = ax.annotate(name.split()[-1], at, LABELS[family], textcoords="offset points", ha="center")
            text.set(fontsize=6.5, color=line["color"])
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        lines[family] = line
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(style.short))
    return lines


def draw(done: list[tuple[Problems, dict[str, Measured], np.ndarray]], path: Path) -> None:
    """Draws the figure: a column for each task, cosines above, signs below."""
    figure = Figure(figsize=(5.2 * len(done), 6.2), dpi=160, layout="constrained")
    figure.set_facecolor("white")
    axes, lines = figure.subplots(2, len(done), sharex=True, sharey="row", squeeze=False), {}
    for column, (problems, found, good) in enumerate(done):
        truth = found[EXACT].full[good]

        def cosine(name, found=found, good=good, truth=truth):
            return cosines(found[name].full[good], truth)

        def sign(name, found=found, good=good, truth=truth):
            return (np.sign(found[name].full[good]) == np.sign(truth)).mean(axis=1)

        for ax, values in zip(axes[:, column], (cosine, sign)):
            style.dress(ax)
            lines |= panel(ax, problems, values, good)
        style.label(axes[0, column], f"{problems.problem.task}, {problems.problem.base}")
        style.label(axes[1, column], x="gradients for one tuning, beside ten steps of training")
    style.label(axes[0, 0], axes[0, 0].get_title(loc="left"), y="cosine with the whole run's derivative")
    axes[1, 0].set_ylabel("share of leaves with its sign", fontsize=8.5, color=style.INK)
    for ax in axes[0]:
        ax.set_ylim(-0.1, 1.08)
        ax.axhline(0.0, color=style.MUTED, linewidth=0.8, zorder=1)
    for ax in axes[1]:
        ax.set_ylim(0.42, 1.04)
        ax.axhline(0.5, color=style.MUTED, linewidth=0.8, zorder=1)
    style.legend(figure, lines)
    style.save(figure, path)


def main() -> None:
    """Prints the tables and draws the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figure", type=Path, default=Path("docs/images/hypergradients.png"))
    path = parser.parse_args().figure
    done = [solved(problem) for problem in PROBLEMS]
    for problems, found, good in done:
        print(f"\n{problems.problem.task}, {problems.problem.base}: {good.sum()} of {good.size} points\n")
        table(problems, found, good)
        print()
        bias(problems.problem, found, good)
    draw(done, path)


if __name__ == "__main__":
    main()
