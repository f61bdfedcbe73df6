"""Hyperparameter sets: named collections of trials, those of learned_optimization and ours.

`AdamLR_10000_R5` is the published name of Adam at 15 learning rates, 5 seeds, 10000 steps: settings, seeds,
length and evaluation cadence are those of learned_optimization, so that its published archives compare with
ours. `LOpt_10000_R5:WEIGHTS` is the published name of a learned optimizer's trials, with the weights to use:
a shipped name, a file, or a folder of meta-training. For every registered optimizer there is also
`<name>-lr`, nine learning rates from a hundredth to a hundred times its default, and `<name>-default`, the
one setting that plays *as is*; wrapped optimizers (`clip:adam-lr`) have them as well.
"""

import dataclasses
import fnmatch
import functools
import itertools
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from outeropt.bench.learned_names import WORD, label, refuse_hyperparameters, shown
from outeropt.bench.published_sets import AMALGAMATION, LEARNED, LEFT_OUT, NOTES, PUBLISHED, Table
from outeropt.errors import ConfigError, UnknownName, first_line, near_misses, unknown_name


if TYPE_CHECKING:
    from outeropt.optimizer import Optimizer


@dataclasses.dataclass(frozen=True)
class HyperparameterSet:
    """One optimizer at some settings, with some seeds, for some steps.

    Attributes:
      name: the set's name; one ending in `-default` plays as is on leaderboards.
      optimizer: a registered optimizer, such as `"adam"` or `"accumulate:adam"`.
      fixed: hyperparameters that all settings share, by name.
      grid: values by hyperparameter; the settings are all combinations. Empty: one setting.
      seeds: number of seeds, at least 1.
      steps: inner steps, of each episode; at least 1.
      episodes: trainings from fresh initial values, one after the other, at least 1.
      eval_every: inner steps between evaluations.
      eval_batches: batches per evaluation.
      last_eval_batches: batches of the evaluation after the last step.
      note: anything a reader should know.
      tags: words to filter by.

    Raises:
      ConfigError: a count below 1, or a hyperparameter without values or both fixed and in the grid.
    """

    name: str
    optimizer: str
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    seeds: int = 3
    steps: int = 1000
    episodes: int = 1
    eval_every: int = 10
    eval_batches: int = 5
    last_eval_batches: int = 10
    note: str = ""
    tags: tuple[str, ...] = ()

    def __post_init__(self):
        for count in _PROTOCOL:
            if getattr(self, count) < 1:
                raise ConfigError(
                    f"Set {self.name}: {count} = {getattr(self, count)}; it must be at least 1."
                )
        for name, values in self.grid.items():
            if not values:
                raise ConfigError(f"Set {self.name}: the grid has no values for {name}; give at least one.")
            if name in self.fixed:
                raise ConfigError(f"Set {self.name}: {name} is both fixed and in the grid; keep one of them.")

    def settings(self) -> tuple[dict[str, float], ...]:
        """All combinations of the grid, in the order of nested loops, the last name fastest."""
        return tuple(dict(zip(self.grid, values)) for values in itertools.product(*self.grid.values()))

    def build(self, setting: Mapping[str, float]) -> "Optimizer":
        """The optimizer at one setting.

        Raises:
          UnknownName: no such optimizer or hyperparameter.
          OutOfSpace: a value outside its space.
          ConfigError: a hyperparameter for a learned optimizer, which has none.
        """
        from outeropt import optimizers

        given = {**self.fixed, **setting}
        refuse_hyperparameters(self.optimizer, given)
        # A leaf inside a schedule or a wrapper has a dotted name, which is no argument of a factory.
        arguments = {name: value for name, value in given.items() if "." not in name}
        inner = {name: value for name, value in given.items() if "." in name}
        return optimizers.get(self.optimizer, **arguments).replace(inner)

    def optimizers(self) -> list["Optimizer"]:
        """The optimizer at every setting, in order."""
        return [self.build(setting) for setting in self.settings()]

    @property
    def shown(self) -> str:
        """The optimizer's name for readers: `learned:my_lopt` for `learned:runs/my_lopt`."""
        return shown(self.optimizer)

    @property
    def protocol(self) -> dict[str, int]:
        """Seeds, length and cadence, as `adapted` takes them."""
        return {count: getattr(self, count) for count in _PROTOCOL}

    def adapted(
        self,
        *,
        seeds: int | None = None,
        steps: int | None = None,
        episodes: int | None = None,
        eval_every: int | None = None,
        eval_batches: int | None = None,
        last_eval_batches: int | None = None,
    ) -> "HyperparameterSet":
        """The same settings with other seeds, length or cadence; None leaves as it is.

        A cadence that does not divide the new length gives way to about a hundred evaluations. A published
        name says how long its trials are, so a set of another length is called `NAME@steps`, and
        one of several episodes `NAME@EPISODESxSTEPS`.

        Raises:
          ConfigError: a count below 1, or a given `eval_every` that does not divide the length.
        """
        from outeropt.training import cadence

        steps = self.steps if steps is None else steps
        if eval_every is None and steps % self.eval_every == 0:
            eval_every = self.eval_every
        batches = self.eval_batches if eval_batches is None else eval_batches
        last = self.last_eval_batches if last_eval_batches is None else last_eval_batches
        episodes = self.episodes if episodes is None else episodes
        name, length = self.name, f"{steps}" if episodes == 1 else f"{episodes}x{steps}"
        if "published" in self.tags and (steps, episodes) != (self.steps, self.episodes):
            name = f"{name}@{length}"
        return dataclasses.replace(
            self,
            name=name,
            seeds=self.seeds if seeds is None else seeds,
            steps=steps,
            episodes=episodes,
            eval_every=cadence(steps, eval_every, batches, last, episodes),
            eval_batches=batches,
            last_eval_batches=last,
        )


_PROTOCOL = ("seeds", "steps", "episodes", "eval_every", "eval_batches", "last_eval_batches")


def _numbered(table: Table, tags: tuple[str, ...]) -> dict[str, HyperparameterSet]:
    """A table's sets at each of its lengths, by name."""
    found = {}
    for prefix, optimizer, fixed, grid, variants in table:
        for variant in variants.split():
            steps, seeds = variant.split("_R")
            name = f"{prefix}_{variant}"
            found[name] = HyperparameterSet(
                name,
                optimizer,
                fixed,
                grid,
                int(seeds),
                int(steps),
                note=NOTES.get(prefix, ""),
                tags=tags,
            )
    return found


@functools.cache
def _published() -> dict[str, HyperparameterSet]:
    return _numbered(PUBLISHED, ("published",)) | _numbered(AMALGAMATION, ("published", "amalgamation"))


@functools.cache
def _for_weights() -> dict[str, HyperparameterSet]:
    return _numbered(LEARNED, ("published", "learned"))


def takes_weights(name: str) -> bool:
    """Whether a name is one of learned_optimization's for learned optimizers, with or without weights."""
    return name.partition(":")[0] in _for_weights()


def learned(weights: str, like: HyperparameterSet) -> HyperparameterSet:
    """A learned optimizer under the protocol of another set, named as learned_optimization names such sets.

    Args:
      weights: a shipped name, a file, or a folder of meta-training.
      like: gives seeds, length and cadence; beside `AdamLR_2000_R5` stands `LOpt_2000_R5-my_lopt`.

    Raises:
      UnknownName: neither a name nor a file.
      OuteroptError: the file is damaged, or holds no learned optimizer.
    """
    empty = HyperparameterSet(f"LOpt_{like.steps}_R{like.seeds}", "learned:", tags=("published", "learned"))
    return _with_weights(dataclasses.replace(empty, **like.protocol), weights)


def _with_weights(item: HyperparameterSet, weights: str) -> HyperparameterSet:
    from outeropt import optimizers

    optimizers.get(f"learned:{weights}")
    return dataclasses.replace(
        item, name=f"{item.name}-{label(weights)}", optimizer=f"{item.optimizer}{weights}"
    )


def tuned(optimizer: str) -> HyperparameterSet | None:
    """`<optimizer>-lr`; None for an optimizer without a learning rate."""
    from outeropt import optimizers

    spaces = optimizers.get(optimizer).spaces
    leaf = next((name for name in spaces if name.split(".")[-1] == "learning_rate"), None)
    leaf = leaf or next((name for name in spaces if name.endswith("learning_rate.peak")), None)
    if leaf is None:
        return None
    # Around the default, so that everyone tunes equally far from home, and the default's own trial is shared.
    # Rounded, so that tables and folders say 0.001 and not 0.0010000000000000002.
    default = float(str(optimizers.get(optimizer).hyperparameters[leaf]))
    points = (float(f"{default * 10 ** (k / 2):.3g}") for k in range(-4, 5))
    grid = {leaf: tuple(point for point in points if spaces[leaf].contains(point))}
    return HyperparameterSet(f"{optimizer}-lr", optimizer, grid=grid, tags=("generated", "tuned"))


def _default(optimizer: str) -> HyperparameterSet:
    return HyperparameterSet(f"{optimizer}-default", optimizer, tags=("generated", "as is"))


def names(pattern: str | None = None) -> list[str]:
    """Names of all sets, published ones first; those for learned optimizers with all weights that ship.

    Args:
      pattern: keep names that match, with `*` and `?` as in file names.
    """
    from outeropt import learned, optimizers

    found = [*_published(), *(f"{name}:{weights}" for weights in learned.names() for name in _for_weights())]
    for optimizer in optimizers.names():
        grid = tuned(optimizer)
        found += [grid.name] if grid else []
        found.append(_default(optimizer).name)
    return [name for name in found if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def get(name: str) -> HyperparameterSet:
    """A set by name; also `LOpt_2000_R5:WEIGHTS`, `path.yaml` (see `from_yaml`) and `path.py:attribute`.

    Raises:
      UnknownName: no such set or weights, or one of learned_optimization's that is not offered, and why.
      ConfigError: a file that does not describe a set.
      OuteroptError: weights that cannot be read.

    Examples:
      >>> from outeropt.bench import sets
      >>> lion = sets.get("lion-lr")
      >>> lion.optimizer, lion.seeds, len(lion.settings())
      ('lion', 3, 9)
    """
    if name in _published():
        return _published()[name]
    if takes_weights(name):
        prefix, _, weights = name.partition(":")
        if not weights:
            raise UnknownName(
                f"Set {name} needs a learned optimizer: write {name}:WEIGHTS with a name of outeropt list "
                "weights, a file, or a folder of meta-training."
            )
        return _with_weights(_for_weights()[prefix], weights)
    if name.endswith((".yaml", ".yml")):
        return from_yaml(name)
    path, separator, attribute = name.rpartition(":")
    if separator and path.endswith(".py"):
        return _from_python(path, attribute)
    optimizer, _, kind = name.rpartition("-")
    if kind in ("lr", "default"):
        return _generated(name, optimizer, kind)
    for pattern, reason in LEFT_OUT.items():
        if fnmatch.fnmatchcase(name, pattern):
            raise UnknownName(f"Set {name} of learned_optimization is not offered: {reason}.")
    raise unknown_name("hyperparameter set", name, names(), see="outeropt list sets")


def _generated(name: str, optimizer: str, kind: str) -> HyperparameterSet:
    from outeropt import optimizers

    try:
        optimizers.get(optimizer)
    except UnknownName:
        if WORD in optimizer:
            raise  # it says which weights there are
        raise unknown_name("hyperparameter set", name, names(), see="outeropt list sets") from None
    found = tuned(optimizer) if kind == "lr" else _default(optimizer)
    if found is None:
        raise UnknownName(f"{optimizer} has no learning rate to search; use {optimizer}-default.")
    return found


def from_yaml(path: str | Path) -> HyperparameterSet:
    """Reads a set from a YAML mapping of `HyperparameterSet`'s fields.

    A grid's values are a list, or what the command line takes: `log:1e-5:1e-1:9`. Without a name the set has
    the file's.

    Raises:
      ConfigError: the file cannot be read or is no mapping, a key is unknown, a value has the wrong type.
    """
    path = Path(path)
    try:
        given = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Set file {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"Set file {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(given, dict):
        raise ConfigError(
            f"Set file {path} must be a mapping with at least `optimizer`, not {type(given).__name__}."
        )
    for key, value in given.items():
        if key not in _TYPES:
            close = near_misses(str(key), _TYPES)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise ConfigError(f"{path}: unknown key {key!r}.{hint} Keys: {', '.join(_TYPES)}.")
        if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
            raise ConfigError(f"{path}: {key} = {value!r} must be a {_NAMES[_TYPES[key]]}.")
    if "optimizer" not in given:
        raise ConfigError(f"{path}: the key `optimizer` is missing; name a registered optimizer.")
    fields = {"name": path.stem, **given}
    fields["grid"] = {name: _values(path, name, values) for name, values in given.get("grid", {}).items()}
    fields["fixed"] = {name: _number(value) for name, value in given.get("fixed", {}).items()}
    return HyperparameterSet(**{**fields, "tags": tuple(given.get("tags", ()))})


_TYPES = {
    "name": str,
    "optimizer": str,
    "fixed": dict,
    "grid": dict,
    "seeds": int,
    "steps": int,
    "episodes": int,
    "eval_every": int,
    "eval_batches": int,
    "last_eval_batches": int,
    "note": str,
    "tags": list,
}
_NAMES = {str: "text", int: "whole number", dict: "mapping", list: "list"}


def _number(value: Any) -> Any:
    # YAML reads 1e-3 (without a point) as text.
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _values(path: Path, name: str, given: Any) -> tuple[float, ...]:
    if isinstance(given, str):
        from outeropt.space import parse_grid

        return tuple(parse_grid(given))
    numbers = [_number(value) for value in given] if isinstance(given, list) else [_number(given)]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(
                f"{path}: the grid of {name} has {number!r}; give numbers, or a grid such as log:1e-5:1e-1:9."
            )
    return tuple(numbers)


def _from_python(path: str, attribute: str) -> HyperparameterSet:
    try:
        found = runpy.run_path(path)
    except Exception as error:
        raise ConfigError(f"{path} cannot be run: {first_line(error)}.") from error
    if attribute not in found:
        raise unknown_name(f"attribute of {path}", attribute, [name for name in found if name[0] != "_"])
    if not isinstance(found[attribute], HyperparameterSet):
        kind = type(found[attribute]).__name__
        raise ConfigError(f"{path}:{attribute} is of type {kind}; make it a HyperparameterSet.")
    return found[attribute]
