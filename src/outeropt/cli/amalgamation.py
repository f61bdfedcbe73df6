"""From the words of `outeropt amalgamate` to objects, and the run with its progress."""

import dataclasses
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from jaxtyping import AbstractArray

from outeropt.cli import learners
from outeropt.cli.values import plain
from outeropt.errors import ConfigError, unknown_name


if TYPE_CHECKING:
    from outeropt import Optimizer
    from outeropt.amalgamation import Amalgamation
    from outeropt.cli.amalgamate import Config
    from outeropt.progress import Bar, Progress


def amalgamated(config: "Config") -> Path:
    """Runs what a configuration asks for.

    Returns:
      The file of the best student.

    Raises:
      UnknownName: no such task, architecture, strategy, perturbation, optimizer or setting.
      ConfigError: a value that is not usable, or a folder of another configuration.
    """
    from outeropt.progress import Progress
    from outeropt.weight_files import FILE

    run = _training(config)
    run.resume(config.out, _as_yaml(config))
    with Progress("unrolls") as progress:
        run.run(_Bars(progress))
    return config.out / FILE


class _Bars:
    """A bar for each period."""

    def __init__(self, progress: "Progress"):
        self._progress = progress
        self._bar: Bar | None = None

    def period(self, label: str, total: int, done: int) -> None:
        # Programs are compiled in the first period that this process does.
        self._bar = self._progress.task(label, total, done, compiles=self._bar is None)

    def unroll(self, note: str) -> None:
        assert self._bar is not None
        self._bar.advance(1, note)


def _training(config: "Config") -> "Amalgamation":
    import jax

    from outeropt import tasks
    from outeropt.amalgamation import PERTURBATIONS, STRATEGIES, Amalgamation, Losses
    from outeropt.cli.running import optimizer_from

    learners.check_seed(config.seed)
    student = learners.start(config, default="RNNProp")
    strategy_kind = _known("strategy", config.strategy, STRATEGIES)
    perturbation_kind = _known("perturbation", config.perturbation, PERTURBATIONS)
    strategy = {name: _schedule(value) for name, value in config.strategy_settings.items()}
    return Amalgamation(
        learners.with_settings(student, config.settings_learning),
        [_teacher(text) for text in config.teachers],
        [tasks.get(name) for name in config.tasks],
        key=jax.random.key(config.seed),
        strategy=_made("strategy", strategy_kind, strategy),
        losses=_made("losses", Losses, config.losses),
        perturbation=_made("perturbation", perturbation_kind, config.perturbation_settings),
        outer=optimizer_from(config.outer, {"learning_rate": 1e-3, **config.outer_hyperparameters}),
        spread=config.scale_spread,
        rematerialise=config.rematerialise,
        finish=operator.methodcaller("with_settings", **student.settings),
    )


def _known(what: str, name: str, known: Mapping[str, type]) -> type:
    if name not in known:
        raise unknown_name(what, name, known, see=", ".join(known))
    return known[name]


def _made(what: str, kind: Any, given: Mapping[str, Any]) -> Any:
    """An object of a class whose fields are its settings.

    Raises:
      UnknownName: it has no such setting.
      ConfigError: a value is of another type, or not allowed.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for name, value in given.items():
        if name not in names:
            raise unknown_name(f"setting of {what}", name, names, see=", ".join(names) or "none")
        wanted, words = _kind(hints[name])
        if isinstance(value, bool) or not isinstance(value, wanted):
            flag = f"--{what}.{name.replace('_', '-')}"
            raise ConfigError(f"{flag} must be {words}, not {value!r}.")
    return kind(**given)


def _kind(hint: Any) -> tuple[Any, str]:
    """What a setting must be, by its annotation; schedules and choices are checked by who takes them."""
    if hint is int:
        return int, "a whole number"
    if hint is float or (isinstance(hint, type) and issubclass(hint, AbstractArray)):
        return (int, float), "a number"
    return object, "a number or a word"


def _schedule(value: Any) -> Any:
    """`"1,2,5"` as a list, and `"1e-3"`, which YAML takes for text, as a number; all else as it is."""
    if isinstance(value, str):
        words = [plain(word) for word in value.split(",")]
        return words if len(words) > 1 else words[0]
    if isinstance(value, Mapping):
        return {name: _schedule(item) for name, item in value.items()}
    return [_schedule(item) for item in value] if isinstance(value, list | tuple) else value


def _teacher(text: str) -> "Optimizer":
    """An optimizer from words, or a learned one from its file or folder."""
    from outeropt import learned, optimizers

    return learned.load(text) if Path(text).exists() else optimizers.from_text(text)


def _as_yaml(config: "Config") -> dict[str, Any]:
    """The configuration as YAML holds it, without the folder."""
    values = dataclasses.asdict(config)
    del values["out"]
    # JSON has no tuples, as YAML has none that is safe to read.
    return json.loads(json.dumps(values))
