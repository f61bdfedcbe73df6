"""`outeropt train`: one optimizer on one task."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from outeropt.cli.values import Plain


@dataclasses.dataclass(frozen=True)
class Config:
    """Train one optimizer on one task, and show its learning curve.

    Hyperparameters are set by --optimizer.NAME VALUE; -c a.yaml b.yaml fills any option (the later file
    wins).
    """

    DOTTED: ClassVar[dict[str, str]] = {"optimizer": "hyperparameters"}

    task: str
    """A task's name (outeropt list tasks), or path/to/file.py:attribute."""
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
    out: Path | None = None
    """Folder for what a self-tuning optimizer learned (controller.safetensors), its picture and its run."""
    load_controller: Path | None = None
    """Start from what another run learned: its --out folder. The model may be another one."""
    freeze: bool = False
    """Let nothing in the optimizer tune itself any more."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.cli.running import optimizer_from, prepare, single

    prepare()
    from outeropt import tasks
    from outeropt.cli.controllers import make_room, prepared, write
    from outeropt.cli.show import show_run

    task = tasks.get(config.task)
    optimizer = prepared(optimizer_from(config.optimizer, config.hyperparameters), config)
    # Now, because a path that cannot be written must not cost a run.
    make_room(optimizer, config)
    archive, after = single(task, optimizer, config)
    show_run(archive)
    if config.log:
        from outeropt.progress import scalars

        with scalars(config.log) as writer:
            for i, step in enumerate(archive.steps):
                writer.log(int(step), {name: curve[0, 0, i] for name, curve in archive.curves.items()})
        print(f"TensorBoard scalars: {config.log}")
    if config.out and after:
        write(optimizer, after, archive, config, config.out)
