"""`outeropt reproduce`: a published study again, beside its published numbers."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from outeropt.errors import ConfigError


_FIRST = {"one-pass-uci": ("energy",), "one-pass-large": ("fashion_mnist",)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Run a published study again, and print its numbers beside the published ones.

    One-pass hyperparameter tuning (Clarke et al. 2022): one-pass-uci on regression tables, one-pass-large on
    Fashion-MNIST, Penn Treebank and CIFAR-10. A study that was killed goes on with the same command.
    -c a.yaml b.yaml fills any option.
    """

    study: tyro.conf.Positional[Literal["one-pass-uci", "one-pass-large"]]
    """The study."""
    datasets: tuple[str, ...] = ()
    """Of one-pass-uci boston, concrete, energy, kin8nm, naval, power, wine, yacht (default: energy); of
    one-pass-large fashion_mnist, penn_treebank, cifar10 (default: fashion_mnist). Or all."""
    methods: tuple[str, ...] = ("all",)
    """Methods, as Random, Ours_LR_Momentum, or all."""
    restarts: int | None = None
    """Restarts of each method: other initial values and other starting hyperparameters. Default: the
    paper's, 200 of a table, 100 of Fashion-MNIST, 50 of the others."""
    steps: int | None = None
    """Inner steps of each. Default: the paper's, 4000 of a table."""
    eval_every: int | None = None
    """Inner steps between evaluations; must divide steps. Default: about a hundredth of them."""
    lanes: int | None = None
    """Runs that one device does at a time. Default: chosen by their size."""
    threshold: float | None = None
    """A final test loss, as the tables tell it, from which on a run counts as diverged. Default: the paper's,
    which is none but 1000 of Fashion-MNIST and 1e5 of Penn Treebank."""
    store: Path = Path("runs.db")
    """Where finished trials are kept; those that are there already are not run again."""
    out: Path = Path("reproduction")
    """Folder for tables.md and figures/."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt import training
    from outeropt.cli.running import prepare

    for name in ("restarts", "lanes"):
        if (count := getattr(config, name)) is not None and count < 1:
            raise ConfigError(f"--{name} {count} is not allowed; give at least 1.")
    prepare()
    from outeropt import Store
    from outeropt.bench.one_pass import study, writing
    from outeropt.bench.one_pass.problems import STUDIES
    from outeropt.cli.show import show_table
    from outeropt.progress import Progress

    problems = STUDIES[config.study]
    datasets = study.chosen(config.datasets or _FIRST[config.study], tuple(problems), "dataset of the study")
    methods = study.chosen(config.methods, tuple(study.METHODS), "method of the study")
    for dataset in datasets:
        training.cadence(problems[dataset].steps if config.steps is None else config.steps, config.eval_every)
    # Now, because a path that cannot be written must not cost a run.
    config.out.mkdir(parents=True, exist_ok=True)
    found = {}
    with Store(config.store) as store, Progress("trials") as progress:
        for dataset in datasets:
            restarts = config.restarts or problems[dataset].restarts
            bar = progress.task(dataset, len(study.run_names(methods)) * restarts, compiles=True)
            found[dataset] = study.run(
                store,
                dataset,
                methods,
                seeds=restarts,
                steps=config.steps,
                eval_every=config.eval_every,
                lanes=config.lanes or "auto",
                report=bar.advance,
            )
    tables, page = writing.write(found, config.out, methods=methods, threshold=config.threshold)
    for table in tables:
        show_table(table.columns, table.rows, table.title)
    print(f"{writing.about(found, config.threshold)}\n{writing.KEY}")
    figures = page.parent / "figures"
    drawn = f"   figures: {figures}" if figures.exists() else ""
    print(f"Tables: {page}{drawn}   trials: {config.store}")
