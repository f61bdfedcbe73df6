"""`outeropt sweep`: many settings and seeds, on one task or many."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from outeropt.cli.values import Plain, Rows
from outeropt.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a task with every setting and seed, as one compiled program.

    Give --set NAME, or --optimizer with --grid or --sample. Other hyperparameters are set by --optimizer.NAME
    VALUE; -c data.yaml algorithm.yaml fills any option, from pieces that must not contradict each other.
    What a chunk of work gets is said by --ray.cores, --ray.gpus, --ray.memory and --ray.retries; on SLURM by
    the same with --slurm, by --slurm.minutes and --slurm.parallel, and whatever else sbatch takes.
    """

    DOTTED: ClassVar[dict[str, str]] = {"optimizer": "hyperparameters", "ray": "ray", "slurm": "slurm"}

    task: str | None = None
    """A task's name, or path/to/file.py:attribute."""
    tasks: tuple[str, ...] = ()
    """Tasks in place of one, by name or pattern (outeropt list tasks 'ImageMLP_*')."""
    train_on: Rows = "train"
    """The rows to train on: train, or train+valid for a method that needs no validation rows."""
    set: str | None = None
    """A hyperparameter set or a collection of sets (outeropt list sets), .yaml file, or path.py:attribute."""
    sets: tuple[str, ...] = ()
    """Sets or collections in place of one."""
    optimizer: str | None = None
    """An optimizer's name, in place of a set."""
    hyperparameters: Annotated[dict[str, Plain], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=SCALE:LOW:HIGH:COUNT or NAME=V1,V2,...; repeat for more hyperparameters."""
    sample: int | None = None
    """That many random settings from the optimizer's spaces, in place of a grid."""
    seeds: int | None = None
    """Seeds per setting. Default: the set's, else 3."""
    steps: int | None = None
    """Inner steps, of each episode. Default: the set's, else 1000."""
    episodes: int | None = None
    """How often every trial trains from fresh initial values; what an optimizer learned stays. Default: the
    set's, else 1."""
    eval_every: int | None = None
    """Inner steps between evaluations; must divide steps. Default: the set's, else about a hundred."""
    eval_batches: int | None = None
    """Batches per split and evaluation. Default: the set's, else 5."""
    last_eval_batches: int | None = None
    """Batches per split of the evaluation after the last step. Default: the set's, else 10."""
    lanes: int | None = None
    """Trials that one device runs at a time. Default: chosen by the size of the training state."""
    store: Path = Path("runs.db")
    """Where finished trials are kept; those that are there already are not run again."""
    name: str | None = None
    """Name of the set in the store. Default: the set's own, or made from optimizer and grid."""
    on: str = "here"
    """Where chunks of trials run: here, processes, slurm, ray, or ray://HEAD:10001."""
    ray: Annotated[dict[str, Plain], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    slurm: Annotated[dict[str, Plain], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Raises `ConfigError` where options contradict each other."""
        if (self.task is None) == (not self.tasks):
            raise ConfigError("Give either --task NAME or --tasks NAME-OR-PATTERN ...")
        if sum((self.set is not None, bool(self.sets), self.optimizer is not None)) != 1:
            raise ConfigError("Give one of --set NAME, --sets NAME ..., and --optimizer NAME (with a grid).")
        if self.optimizer is None and (self.grid or self.sample is not None or self.hyperparameters):
            raise ConfigError(
                "--grid, --sample and --optimizer.* go with --optimizer; a set has its own grid."
            )
        if self.grid and self.sample is not None:
            raise ConfigError("--grid and --sample exclude each other; give one.")
        for name in ("sample", "seeds", "episodes", "lanes"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ConfigError(f"--{name} {count} is not allowed; give at least 1.")


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.cli.running import plans_of, prepare, swept, tasks_of

    config.check()
    prepare()
    from outeropt.cli.show import show_archive, show_episodes

    plans = plans_of(config)
    archives = swept(tasks_of(config), plans, config)
    for i in range(0, len(archives), len(plans)):
        of_task = archives[i : i + len(plans)]
        if len(of_task) == 1:
            show_archive(of_task[0])
        if len(of_task) > 1 or of_task[0].episodes > 1:
            show_episodes(of_task)
    print(f"Trials: {config.store}   next: outeropt report {config.store}")
