"""`outeropt train`: one optimizer on one task."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from outeropt.cli.values import Plain, Rows


@dataclasses.dataclass(frozen=True)
class Config:
    """Train one optimizer on one task, and show its learning curve.

    Hyperparameters are set by --optimizer.NAME VALUE; -c data.yaml algorithm.yaml fills any option, from
    pieces that must not contradict each other.
    """

    DOTTED: ClassVar[dict[str, str]] = {"optimizer": "hyperparameters"}

    task: str
    """A task's name (outeropt list tasks), or path/to/file.py:attribute."""
    train_on: Rows = "train"
    """The rows to train on: train, or train+valid for a method that needs no validation rows."""
    optimizer: str = "adamw"
    """An optimizer's name (outeropt list optimizers), or wrapper:name."""
    hyperparameters: Annotated[dict[str, Plain], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    steps: int = 1000
    """Inner steps, of each episode."""
    episodes: int = 1
    """How often to train from fresh initial values, one after the other; what the optimizer learned stays."""
    seed: int = 0
    """Seed of initial values, batches and evaluations."""
    eval_every: int | None = None
    """Inner steps between evaluations; must divide steps. Default: about a hundred evaluations."""
    eval_batches: int = 5
    """Batches per split and evaluation."""
    last_eval_batches: int = 10
    """Batches per split of the evaluation after the last step."""
    store: Path | None = None
    """Keep the trial in this store; one that is there already is not run again."""
    log: Path | None = None
    """Write the curves as TensorBoard scalars into this folder."""
    log_dir: Annotated[Path | None, tyro.conf.arg(aliases=["-l"])] = None
    """Write them, and the configuration, into a folder of this run's own: LOG_DIR/GROUP/TIME NAME."""
    group: Annotated[str, tyro.conf.arg(aliases=["-g"])] = ""
    """The folder in --log-dir that runs of one kind share."""
    name: Annotated[str | None, tyro.conf.arg(aliases=["-n"])] = None
    """What this run's folder in --log-dir is called, after its time."""
    out: Path | None = None
    """Folder for what a self-tuning optimizer learned (controller.safetensors), its picture and its run."""
    load_controller: Path | None = None
    """Start from what another run learned: its --out folder. The model may be another one."""
    freeze: bool = False
    """Let nothing in the optimizer tune itself any more."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.cli.running import check, optimizer_from, prepare, single, task_of

    prepare()
    from outeropt.cli import logs
    from outeropt.cli.controllers import make_room, prepared, write
    from outeropt.cli.show import show_run

    task = task_of(config)
    optimizer = prepared(optimizer_from(config.optimizer, config.hyperparameters), config)
    check(task, optimizer, config)
    # Now, because a path that cannot be written must not cost a run.
    make_room(optimizer, config)
    folder = logs.run_folder(config.log_dir, config.group, config.name)
    if folder:
        logs.write_config(config, folder)
    archive, after = single(task, optimizer, config)
    show_run(archive)
    for place in filter(None, (config.log, folder)):
        logs.write_curves(archive, place)
        print(f"TensorBoard scalars: {place}")
    if config.out and after:
        write(optimizer, after, archive, config, config.out)
