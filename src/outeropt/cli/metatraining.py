"""From the words of `outeropt metatrain` to objects, and the run with its progress."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

from outeropt.cli.values import Plain, coerce, plain
from outeropt.errors import ConfigError, unknown_name


if TYPE_CHECKING:
    from outeropt import Task, TaskFamily
    from outeropt.cli.metatrain import Config
    from outeropt.learned import LearnedOptimizer
    from outeropt.metatraining import Estimator, MetaTraining, Validation
    from outeropt.metatraining.lengths import Lengths
    from outeropt.metatraining.population import PopulationTraining


_PLAIN = (int, float, bool, str)


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
        bar = progress.task(", ".join(config.tasks), total, run.resume(config.out), compiles=True)

        def report(count: int, values: Mapping[str, float]) -> None:
            bar.advance(count, f"meta-loss {values['meta/loss']:.4f}")

        run.run(report)
    learned: Any = run.optimizer
    about = {name: _json(value) for name, value in dataclasses.asdict(config).items() if name != "out"}
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
    start = _start(config)
    finish = None
    if config.settings_learning:
        # The start has settings as it will be used; another may hold while it is learned.
        finish = functools.partial(_with, settings=start.settings)
        start = _with(start, config.settings_learning)
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
    given = _read(f"the estimator {name}", kinds, settings)
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


def _read(whose: str, kinds: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the types of what they are for.

    Raises:
      UnknownName: there is no such setting.
      ConfigError: a value is of another type.
    """
    given = {}
    for key, value in settings.items():
        if key not in kinds:
            raise unknown_name(f"setting of {whose}", key, kinds, see=", ".join(kinds))
        if get_origin(kinds[key]) is tuple and not isinstance(value, tuple):
            value = tuple(plain(word) for word in str(value).split(","))
        given[key] = coerce(value, kinds[key], f"{key} of {whose}")
    return given


def _check(config: "Config") -> None:
    if config.population < 1:
        raise ConfigError(f"--population {config.population} is not possible; give at least 1.")
    if not 0 <= config.seed < 2**32:
        raise ConfigError(
            f"Seed {config.seed} is not allowed; seeds are whole numbers from 0 to {2**32 - 1}."
        )
    if config.validation_every < 0:
        raise ConfigError(
            f"--validation-every {config.validation_every} is not possible; give at least 1, or 0 for no "
            "validation."
        )


def _start(config: "Config") -> "LearnedOptimizer":
    import jax

    from outeropt import learned

    if config.weights is not None:
        weights = learned.load(config.weights)
        if config.settings or config.architecture not in (None, type(weights).__name__):
            raise ConfigError(
                f"--architecture and --settings.* are for a fresh optimizer; {config.weights} is of the "
                f"architecture {type(weights).__name__} and has its own settings. Leave them out."
            )
        return weights
    name = config.architecture or "AdafacMLP"
    settings = dict(config.settings)
    if name in learned.ARCHITECTURES:
        kinds = get_type_hints(learned.ARCHITECTURES[name].__init__)
        settings = _read(name, {key: kind for key, kind in kinds.items() if key != "key"}, settings)
    return learned.build(name, settings, jax.random.key(config.seed))


def _with(optimizer: "LearnedOptimizer", settings: Mapping[str, Any]) -> "LearnedOptimizer":
    for name in settings:
        if name not in optimizer.settings:
            raise unknown_name(f"setting of {type(optimizer).__name__}", name, optimizer.settings)
    return optimizer.with_settings(**settings)


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
