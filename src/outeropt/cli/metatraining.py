"""From the words of `outeropt metatrain` to objects, and the run with its progress."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outeropt.cli.config import Plain
from outeropt.errors import ConfigError, unknown_name


if TYPE_CHECKING:
    from outeropt import Task, TaskFamily
    from outeropt.cli.metatrain import Config
    from outeropt.learned import LearnedOptimizer
    from outeropt.metatraining import Estimator, MetaTraining, Validation
    from outeropt.metatraining.population import PopulationTraining


def metatrained(config: "Config") -> Path:
    """Runs what a configuration asks for, and writes the learned optimizer.

    Returns:
      The file of the learned optimizer.

    Raises:
      UnknownName: no such task, architecture, estimator, optimizer or setting.
      ConfigError: a value that is not usable.
    """
    from outeropt.learned.files import FILE
    from outeropt.progress import Progress

    run = _training(config)
    with Progress("outer steps") as progress:
        total = config.steps * config.population
        bar = progress.task(", ".join(config.tasks), total, run.resume(config.out))

        def report(count: int, values: Mapping[str, float]) -> None:
            bar.advance(count, f"meta-loss {values['meta/loss']:.4f}")

        run.run(report)
    learned: Any = run.optimizer
    about = {name: _json(value) for name, value in dataclasses.asdict(config).items() if name != "out"}
    learned.save(config.out / FILE, about)
    return config.out / FILE


def _training(config: "Config") -> "MetaTraining | PopulationTraining":
    """The run, of one optimizer or of a population."""
    import jax

    from outeropt import optimizers
    from outeropt.metatraining import MetaTraining, tuned
    from outeropt.metatraining.population import PopulationTraining

    if config.population < 1:
        raise ConfigError(f"--population {config.population} is not possible; give at least 1.")
    families = [_family(name) for name in config.tasks]
    if not families:
        raise ConfigError("Give at least one task to learn on: --tasks NAME ...")
    start = _start(config)
    estimator = estimator_from(config.estimator, config.estimator_settings)
    outer = optimizers.get(config.outer, **config.outer_hyperparameters)
    validation = _validation(config)
    options: dict[str, Any] = {
        "estimator": estimator,
        "outer": outer,
        "meta_loss": config.meta_loss,
        "unit": config.unit,
        "steps": config.steps,
        "key": jax.random.key(config.seed),
    }
    if config.population == 1:
        return MetaTraining(start, families, validation=validation, **options)
    if validation is None:
        raise ConfigError(
            "--population ranks its members by validation: give --validation-every a number above 0."
        )
    spaces = tuned.usual(estimator, outer)
    return PopulationTraining(
        start, families, validation=validation, tuned=spaces, members=config.population, **options
    )


def estimator_from(name: str, settings: Mapping[str, Plain]) -> "Estimator":
    """The named estimator.

    Args:
      name: a name in `metatraining.ESTIMATORS`.
      settings: its settings; its `lengths` are given as `length`, or as `low` and `high`, log-uniform.

    Raises:
      UnknownName: no such estimator or setting.
      ConfigError: lengths are missing, or a value is not usable.
    """
    from outeropt.metatraining import ESTIMATORS, lengths

    if name not in ESTIMATORS:
        raise unknown_name("estimator", name, ESTIMATORS, see="outeropt list estimators")
    kind: Any = ESTIMATORS[name]
    given: dict[str, Any] = dict(settings)
    taken = list(inspect.signature(kind).parameters)
    known = [
        *(key for key in taken if key != "lengths"),
        *(("length", "low", "high") if "lengths" in taken else ()),
    ]
    if "lengths" in taken:
        if "length" in given:
            given["lengths"] = lengths.Constant(given.pop("length"))
        elif "low" in given and "high" in given:
            multiple = given.get("truncation", 1)
            given["lengths"] = lengths.LogUniform(given.pop("low"), given.pop("high"), multiple)
        else:
            raise ConfigError(
                f"The estimator {name} needs lengths of trajectories: --estimator.length, or "
                "--estimator.low and --estimator.high."
            )
    for key in given:
        if key not in (*known, "lengths"):
            error = unknown_name(f"setting of the estimator {name}", key, known)
            raise type(error)(f"{error} It has: {', '.join(known)}.")
    return kind(**given)


def _start(config: "Config") -> "LearnedOptimizer":
    import jax

    from outeropt import learned

    if config.weights is None:
        return learned.build(config.architecture, config.settings, jax.random.key(config.seed))
    if config.settings:
        raise ConfigError("--settings.* are for a fresh optimizer; weights bring their own.")
    return learned.load(config.weights)


def _family(name: str) -> "Task | TaskFamily":
    from outeropt import tasks

    return tasks.FAMILIES[name]() if name in tasks.FAMILIES else tasks.get(name)


def _validation(config: "Config") -> "Validation | None":
    from outeropt import tasks
    from outeropt.metatraining import Validation

    if config.validation_every == 0:
        return None
    names = config.validation_tasks or [name for name in config.tasks if name not in tasks.FAMILIES]
    if not names:
        raise ConfigError(
            "A family has no validation runs of its own: give --validation-tasks, or --validation-every 0."
        )
    return Validation(
        tuple(tasks.get(name) for name in names),
        steps=config.validation_steps,
        every=config.validation_every,
    )


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
