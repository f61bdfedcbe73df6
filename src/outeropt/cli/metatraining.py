"""From the words of `outeropt metatrain` to objects, and the run with its progress."""

import dataclasses
import inspect
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

from outeropt.cli import learners
from outeropt.cli.values import Plain
from outeropt.errors import ConfigError, unknown_name


if TYPE_CHECKING:
    from outeropt import Task, TaskFamily
    from outeropt.cli.metatrain import Config
    from outeropt.metatraining import Estimator, MetaTraining, Validation
    from outeropt.metatraining.lengths import Lengths
    from outeropt.metatraining.population import PopulationTraining


_PLAIN = (int, float, bool, str)


# Options of the place where a run is done, which say nothing of what was learned.
_PLACE = {"out", "devices", "spread", "coordinator", "processes", "process"}


def metatrained(config: "Config") -> Path | None:
    """Runs what a configuration asks for, and writes the learned optimizer.

    Returns:
      The file of the learned optimizer; None in all processes but the first, which writes it.

    Raises:
      UnknownName: no such task, architecture, estimator, optimizer or setting.
      ConfigError: a value that is not usable.
    """
    from outeropt.progress import Progress
    from outeropt.weight_files import FILE

    run = _training(config)
    with Progress("outer steps", quiet=not run.together.first) as progress:
        total = config.steps * config.population
        bar = progress.task(", ".join(config.tasks), total, run.resume(config.out), compiles=True)

        def report(count: int, values: Mapping[str, float]) -> None:
            bar.advance(count, f"meta-loss {values['meta/loss']:.4f}")

        run.run(report)
    if not run.together.first:
        return None
    learned: Any = run.optimizer
    about = {name: _json(value) for name, value in dataclasses.asdict(config).items() if name not in _PLACE}
    about["architecture"] = type(learned).__name__
    learned.save(config.out / FILE, about)
    return config.out / FILE


def _training(config: "Config") -> "MetaTraining | PopulationTraining":
    """The run, of one optimizer or of a population."""
    import jax

    from outeropt.cli.running import optimizer_from
    from outeropt.metatraining import MetaTraining, tuned
    from outeropt.metatraining.population import PopulationTraining

    _check(config)
    families = [_family(name) for name in config.tasks]
    if not families:
        raise ConfigError("Give at least one task to learn on: --tasks NAME ...")
    start = learners.start(config)
    finish = None
    if config.settings_learning:
        # The start has settings as it will be used; another may hold while it is learned.
        finish = operator.methodcaller("with_settings", **start.settings)
        start = learners.with_settings(start, config.settings_learning)
    estimator = estimator_from(config.estimator, config.estimator_settings)
    outer = optimizer_from(config.outer, config.outer_hyperparameters)
    validation = _validation(config)
    options: dict[str, Any] = {
        "estimator": estimator,
        "outer": outer,
        "meta_loss": config.meta_loss,
        "unit": config.unit,
        "since": config.since,
        "finish": finish,
        "devices": _devices(config, estimator),
        "spread": config.spread,
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
    from outeropt.metatraining import ESTIMATORS

    if name not in ESTIMATORS:
        raise unknown_name("estimator", name, ESTIMATORS, see="outeropt list estimators")
    kind: Any = ESTIMATORS[name]
    parameters = inspect.signature(kind).parameters
    hints = get_type_hints(kind)
    # What is no plain type is an array of a single number.
    kinds = {
        key: hints[key] if get_origin(hints[key]) or hints[key] in _PLAIN else float for key in parameters
    }
    if "lengths" in parameters:
        del kinds["lengths"]
        kinds |= {"length": int, "low": int, "high": int}
    given = learners.read(f"the estimator {name}", kinds, settings)
    if "lengths" in parameters:
        # What is drawn are multiples of the truncation, so that no inner step is wasted.
        default = parameters["truncation"].default if "truncation" in parameters else 1
        given["lengths"] = _lengths(name, given, given.get("truncation", default))
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in given:
            raise ConfigError(f"The estimator {name} needs --estimator.{key}, which has no default.")
    return kind(**given)


def _lengths(estimator: str, given: dict[str, Any], multiple: int) -> "Lengths":
    """Takes `length`, or `low` and `high`, out of an estimator's settings."""
    from outeropt.metatraining import lengths

    found = {key: given.pop(key) for key in ("length", "low", "high") if key in given}
    if found.keys() == {"length"}:
        return lengths.Constant(found["length"])
    if found.keys() == {"low", "high"}:
        return lengths.LogUniform(found["low"], found["high"], max(multiple, 1))
    raise ConfigError(
        f"The estimator {estimator} needs lengths of trajectories: either --estimator.length, or "
        f"--estimator.low and --estimator.high; given: {', '.join(found) or 'none'}."
    )


def _devices(config: "Config", estimator: "Estimator") -> "list[Any] | None":
    from outeropt.metatraining.devices import exactly

    if config.devices is None:
        return None
    # A family's own devices are a part of these; as many of them are used as divide the particles.
    return exactly(config.devices, estimator.particles if config.spread == "particles" else None)


def _check(config: "Config") -> None:
    if config.population < 1:
        raise ConfigError(f"--population {config.population} is not possible; give at least 1.")
    learners.check_seed(config.seed)
    if config.validation_every < 0:
        raise ConfigError(
            f"--validation-every {config.validation_every} is not possible; give at least 1, or 0 for no "
            "validation."
        )


def _family(name: str) -> "Task | TaskFamily":
    from outeropt import tasks

    return tasks.FAMILIES[name]() if name in tasks.FAMILIES else tasks.get(name)


def _validation(config: "Config") -> "Validation | None":
    from outeropt import tasks
    from outeropt.metatraining import Validation

    if config.validation_every == 0:
        return None
    own = [name for name in config.tasks if name not in tasks.FAMILIES]
    names = list(dict.fromkeys(config.validation_tasks or own))
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
