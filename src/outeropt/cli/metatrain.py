"""`outeropt metatrain`: learn an optimizer."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from outeropt.cli.values import Plain, Setting


Entries = Annotated[dict[str, Plain], tyro.conf.Suppress]


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn an optimizer: descend on its meta-parameters by estimated gradients of its meta-loss.

    -c a.yaml b.yaml fills any option, from pieces that must not contradict each other. --settings.NAME,
    --estimator.NAME and --outer.NAME set what the architecture, the estimator and the outer optimizer take,
    and --settings-learning.NAME what the architecture takes instead while it is learned. A run that was
    interrupted goes on when the same command is given again.
    """

    DOTTED: ClassVar[dict[str, str]] = {
        "settings": "settings",
        "settings-learning": "settings_learning",
        "estimator": "estimator_settings",
        "outer": "outer_hyperparameters",
    }

    out: Path
    """Folder of the run: checkpoints, TensorBoard scalars, and optimizer.safetensors in the end."""
    tasks: tuple[str, ...]
    """Tasks and families to learn on (outeropt list tasks); each has its own particles."""
    architecture: str | None = None
    """What is learned (outeropt list architectures). Default: AdafacMLP, or that of the weights."""
    settings: Annotated[dict[str, Setting], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    settings_learning: Annotated[dict[str, Setting], tyro.conf.Suppress] = dataclasses.field(
        default_factory=dict
    )
    weights: str | None = None
    """Start from this learned optimizer (a name, file or folder) in place of a fresh one."""
    estimator: str = "pes"
    """How the outer gradient is estimated (outeropt list estimators)."""
    estimator_settings: Entries = dataclasses.field(default_factory=dict)
    outer: str = "clip_norm:adam"
    """The optimizer of the outer loop: any name of outeropt list optimizers."""
    outer_hyperparameters: Entries = dataclasses.field(default_factory=dict)
    meta_loss: Literal["train", "valid", "test"] = "train"
    """The loss that is learned on: of the training minibatch before each step, or of a held-out one after."""
    unit: Literal["share", "log"] = "share"
    """The meta-loss is the loss as a share of the first one, or the logarithm of that."""
    since: float = 0.0
    """Share of each run before which its losses do not count: 0.5 learns on the second half."""
    steps: int = 1000
    """Outer steps."""
    seed: int = 0
    """Seed of everything."""
    validation_tasks: tuple[str, ...] = ()
    """Tasks by whose validation split the best optimizer is kept. Default: the tasks themselves."""
    validation_steps: int = 1000
    """Inner steps of a validation run."""
    validation_every: int = 250
    """Outer steps between validations; 0 never validates, and the last optimizer is kept."""
    population: int = 1
    """Members of a population that tunes std and the outer learning rate as it learns; 1 is a plain run."""
    devices: int | Literal["all"] | None = None
    """How many devices share the particles, in all processes together. Default: as many as divide them."""
    spread: Literal["particles", "families"] = "particles"
    """Devices share the particles of each family, or each family has devices of its own (in one process)."""
    coordinator: str | None = None
    """HOST:PORT of the first of several processes that learn together, to be given to each of them."""
    processes: int | None = None
    """How many processes learn together. Default: the tasks of a SLURM job step; 1 lets each run alone."""
    process: int | None = None
    """Which of them this one is, from 0; the first writes all files."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.cli.running import prepare

    prepare()
    from outeropt.cli.joining import join
    from outeropt.cli.metatraining import metatrained

    join(config.coordinator, config.processes, config.process)
    made = metatrained(config)
    if made is not None:
        print(f"Learned optimizer: {made}   next: outeropt evaluate --weights {config.out} --tasks ...")
