"""`outeropt amalgamate`: distil many optimizers into one."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from outeropt.cli.values import Plain, Setting


@dataclasses.dataclass(frozen=True)
class Config:
    """Distil teachers into one learned optimizer, the student, and keep all of it in a folder.

    -c a.yaml b.yaml fills any option, from pieces that must not contradict each other; --preset NAME ... adds
    pieces that come with the program and win over files (outeropt list presets). --settings.NAME,
    --strategy.NAME, --losses.NAME, --perturbation.NAME and --outer.NAME set what the architecture, the
    strategy, the losses, the perturbation and the outer optimizer take; lists are written 1,2,5. A run that
    was interrupted goes on when the same command is given again.
    """

    DOTTED: ClassVar[dict[str, str]] = {
        "settings": "settings",
        "settings-learning": "settings_learning",
        "strategy": "strategy_settings",
        "losses": "losses",
        "perturbation": "perturbation_settings",
        "outer": "outer_hyperparameters",
    }
    PRESETS: ClassVar[Path] = Path(__file__).with_name("presets")

    out: Path
    """Folder of this replicate, by custom runs/EXPERIMENT/NUMBER: configuration, summary.csv, a checkpoint
    and a log for each period, and the best student as optimizer.safetensors."""
    tasks: tuple[str, ...]
    """Tasks to train on, one after the other in each period (outeropt list tasks)."""
    teachers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--teacher",))] = ()
    """Whom the student imitates: NAME,hyperparameter=value,... (outeropt list optimizers), or a file or
    folder of a learned optimizer, such as a choice policy."""
    architecture: str | None = None
    """The student (outeropt list architectures). Default: RNNProp, or that of the weights."""
    settings: Annotated[dict[str, Setting], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    settings_learning: Annotated[dict[str, Setting], tyro.conf.Suppress] = dataclasses.field(
        default_factory=dict
    )
    weights: str | None = None
    """Start from this learned optimizer (a name, file or folder) in place of a fresh student."""
    strategy: str = "curriculum"
    """Which unrolls there are, and when to go on: simple, repeat or curriculum."""
    strategy_settings: Annotated[dict[str, Any], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    losses: Annotated[dict[str, Plain], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    perturbation: str = "none"
    """What is done to the student's weights as it learns: none, fgsm, pgd, cgd, projected_pgd, gaussian,
    gaussian_rel, gaussian_persistent or input_noise."""
    perturbation_settings: Annotated[dict[str, Plain], tyro.conf.Suppress] = dataclasses.field(
        default_factory=dict
    )
    outer: str = "clip_adaptive:adam"
    """The optimizer of the outer loop."""
    outer_hyperparameters: Annotated[dict[str, Plain], tyro.conf.Suppress] = dataclasses.field(
        default_factory=dict
    )
    scale_spread: float = 3.0
    """Coordinates are scaled by factors between exp(-x) and exp(x) as the student learns; 0 for none."""
    rematerialise: bool = False
    """Recompute inner steps for their gradients: a quarter of the memory, in about the same time."""
    seed: int = 0
    """Seed of everything."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.cli.running import prepare

    prepare()
    from outeropt.cli.amalgamation import amalgamated

    made = amalgamated(config)
    tasks = " ".join(config.tasks)
    print(f"Student: {made}   next: outeropt evaluate --weights {config.out} --tasks {tasks}")
