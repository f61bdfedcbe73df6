"""`outeropt reproduce`: a published study again, beside its published numbers."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from outeropt.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config:
    """Run a published study again, and print its numbers beside the published ones.

    one-pass-uci: one-pass hyperparameter tuning on regression tables (Clarke et al. 2022). A study that was
    killed goes on with the same command. -c a.yaml b.yaml fills any option.
    """

    study: tyro.conf.Positional[Literal["one-pass-uci"]]
    """The study."""
    datasets: tuple[str, ...] = ("energy",)
    """Tables: boston, concrete, energy, kin8nm, naval, power, wine, yacht, or all."""
    methods: tuple[str, ...] = ("all",)
    """Methods, as Random, Ours_LR_Momentum, or all."""
    restarts: int = 200
    """Restarts of each method: other initial values and other starting hyperparameters."""
    steps: int = 4000
    """Inner steps of each."""
    eval_every: int = 100
    """Inner steps between evaluations; must divide steps."""
    threshold: float | None = None
    """A final test loss, in the table's units, from which on a run counts as diverged. Default: none."""
    store: Path = Path("runs.db")
    """Where finished trials are kept; those that are there already are not run again."""
    out: Path = Path("reproduction")
    """Folder for tables.md and figures/."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt import training
    from outeropt.cli.running import prepare

    if config.restarts < 1:
        raise ConfigError(f"--restarts {config.restarts} is not allowed; give at least 1.")
    prepare()
    from outeropt import Store
    from outeropt.bench.one_pass import study, writing
    from outeropt.cli.show import show_table
    from outeropt.progress import Progress

    datasets = study.chosen(config.datasets, study.DATASETS, "dataset of the study")
    methods = study.chosen(config.methods, tuple(study.METHODS), "method of the study")
    training.cadence(config.steps, config.eval_every, 1, 1, 1)
    optimizers = study.study_methods()
    # Now, because a path that cannot be written must not cost a run.
    config.out.mkdir(parents=True, exist_ok=True)
    trials = len(study.run_names(methods)) * config.restarts
    found = {}
    with Store(config.store) as store, Progress("trials") as progress:
        for dataset in datasets:
            bar = progress.task(dataset, trials, compiles=True)
            found[dataset] = study.run(
                store,
                dataset,
                methods,
                seeds=config.restarts,
                steps=config.steps,
                eval_every=config.eval_every,
                optimizers=optimizers,
                report=bar.advance,
            )
    tables, page = writing.write(found, config.out, methods=methods, threshold=config.threshold)
    for table in tables:
        show_table(table.columns, table.rows, table.title)
    print(f"{writing.about(found, config.threshold)}\n{writing.KEY}")
    figures = page.parent / "figures"
    drawn = f"   figures: {figures}" if figures.exists() else ""
    print(f"Tables: {page}{drawn}   trials: {config.store}")
