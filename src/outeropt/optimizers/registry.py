"""The names of optimizers: `names`, `get`, `describe`, and sources of further ones."""

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import outeropt
from outeropt.errors import ConfigError, UnknownName, unknown_name
from outeropt.optimizer import Optimizer
from outeropt.optimizers.contrib_table import CONTRIB
from outeropt.optimizers.entry import Entry, Paper, check
from outeropt.optimizers.own_table import ALIASES, OWN, PREFIXES, Alias, Prefix, aliases
from outeropt.optimizers.preconditioned.table import PRECONDITIONED
from outeropt.optimizers.table import OPTAX
from outeropt.optimizers.teachers.table import TEACHERS
from outeropt.optimizers.tuning_free.table import TUNING_FREE
from outeropt.space import Space


TABLE: dict[str, Entry] = {**OPTAX, **CONTRIB, **TUNING_FREE, **PRECONDITIONED, **TEACHERS, **OWN}


@dataclasses.dataclass(frozen=True)
class Source:
    """A room that makes optimizers of its own, under names that begin with its own word and a colon.

    Attributes:
      load: makes the optimizer from the rest of the name.
      names: the rests of names that are known beforehand.
      paper: where the method of one of them comes from.
    """

    load: Callable[[str], Optimizer]
    names: Callable[[], list[str]]
    paper: Callable[[Optimizer], Paper]


_SOURCES: dict[str, Source] = {}


def add_source(word: str, source: Source) -> None:
    """Lets names like `word:rest` be made by `source`, which a room on a higher floor brings."""
    _SOURCES[word] = source


def register(
    entries: Mapping[str, Entry], prefixes: Mapping[str, Prefix], combinations: Mapping[str, Alias]
) -> None:
    """Adds names, wrappers and names of combinations that a room on a higher floor brings."""
    TABLE.update(entries)
    PREFIXES.update(prefixes)
    ALIASES.update(combinations)
    aliases.cache_clear()


def sources() -> dict[str, Source]:
    """All sources by their words, after the rooms that bring them are loaded."""
    outeropt._load_sources()
    return _SOURCES


def names(pattern: str | None = None, tuning_free: bool | None = None) -> list[str]:
    """Every registered name, sorted.

    Args:
      pattern: keep names that match, with `*` and `?` as in file names.
      tuning_free: keep only optimizers that are (True) or are not (False) meant to work at their defaults
        anywhere.

    Examples:
      >>> from outeropt import optimizers
      >>> optimizers.names("*lion*")
      ['dadapt_lion', 'lion']
      >>> "prodigy" in optimizers.names(tuning_free=True)
      True
    """
    sourced = {f"{word}:{rest}" for word, source in sources().items() for rest in source.names()}
    found = sorted({*TABLE, *aliases(), *sourced})
    if pattern is not None:
        found = [name for name in found if fnmatch.fnmatchcase(name, pattern)]
    if tuning_free is not None:
        free = sourced | _tuning_free()
        found = [name for name in found if (name in free) == tuning_free]
    return found


def _tuning_free() -> set[str]:
    return {name for name, entry in {**TABLE, **aliases()}.items() if entry.tuning_free}


def prefixes() -> dict[str, str]:
    """What a name may begin with (`clip:adam`), and what that does."""
    outeropt._load_sources()
    return {name: prefix.summary for name, prefix in PREFIXES.items()}


def get(name: str, **hyperparameters: Any) -> Optimizer:
    """The optimizer called `name`.

    Args:
      name: a registered name, or wrappers and a name: `"clip:adam"`, `"cosine:averaged:sgd"`, outermost
        first.
      **hyperparameters: values that differ from the defaults. A wrapper takes those that are its own; the
        rest go to the optimizer inside, as do all that begin with `inner.` (`{"inner.weight_decay": 0}`).

    Raises:
      UnknownName: there is no such optimizer, wrapper or hyperparameter.
      OutOfSpace: a value lies outside its space.
      ConfigError: hyperparameters for an optimizer of a source, such as `"learned:small_fc"`.

    Examples:
      >>> from outeropt import optimizers
      >>> adamw = optimizers.get("cosine:adamw", learning_rate=0.5, warmup_fraction=0.25)
      >>> float(adamw.hyperparameters["schedule.warmup_fraction"])
      0.25
    """
    if ":" in name:
        return _wrapped(name, hyperparameters)
    if name not in TABLE:
        outeropt._load_sources()
    if name in TABLE:
        return TABLE[name].build(name, hyperparameters)
    if name in aliases():
        alias = aliases()[name]
        return get(alias.name, **{**alias.defaults, **hyperparameters})
    raise unknown_name("optimizer", name, {**TABLE, **aliases()}, see="outeropt list optimizers")


def _wrapped(name: str, hyperparameters: dict[str, Any]) -> Optimizer:
    first, rest = name.split(":", 1)
    if first not in PREFIXES:
        outeropt._load_sources()
    if first not in PREFIXES and first in sources():
        if hyperparameters:
            raise ConfigError(
                f"{name} takes no hyperparameter {next(iter(hyperparameters))}: its numbers come with "
                "its name. Leave it out, or put a wrapper that has it in front (clip:, accumulate:, ...)."
            )
        return sources()[first].load(rest)
    if first not in PREFIXES:
        error = unknown_name("wrapper", first, [*PREFIXES, *sources()])
        raise UnknownName(f"{error} Wrappers are {', '.join(PREFIXES)}.")
    prefix = PREFIXES[first]
    own = {key: value for key, value in hyperparameters.items() if prefix.takes(key)}
    inner = {key.removeprefix("inner."): value for key, value in hyperparameters.items() if key not in own}
    try:
        optimizer = prefix.wrap(get(rest, **inner), own)
    except UnknownName as error:
        unknown = [key for key in inner if f"{key!r}" in str(error)]
        own_names = f" {first} has: {', '.join(prefix.arguments) or 'none'}." if unknown else ""
        raise UnknownName(f"{error}{own_names}") from None
    check(optimizer)
    return optimizer


@dataclasses.dataclass(frozen=True)
class Description:
    """What there is to know about a registered optimizer.

    Attributes:
      name: as registered.
      paper: where the method comes from.
      tuning_free: whether it is meant to work at its defaults on any task.
      needs: names of the context that `update` cannot do without.
      defaults: the hyperparameters' default values, by leaf name.
      spaces: their spaces, by leaf name.
      settings: what is fixed when the optimizer is built, by name.
    """

    name: str
    paper: Paper
    tuning_free: bool
    needs: tuple[str, ...]
    defaults: dict[str, float | list[float]]
    spaces: dict[str, Space]
    settings: dict[str, Any]

    def __str__(self) -> str:
        lines = [self.name, f"  {self.paper}"]
        if self.tuning_free:
            lines.append("  tuning-free")
        if self.needs:
            lines.append(f"  needs {', '.join(self.needs)}")
        for name, value in self.defaults.items():
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            lines.append(f"  {name} = {shown}" + (f"   {self.spaces[name]}" if name in self.spaces else ""))
        lines += [f"  {name} = {value}   (fixed)" for name, value in self.settings.items()]
        return "\n".join(lines)


def describe(name: str) -> Description:
    """Paper, defaults, spaces and needs of an optimizer, by any name that `get` takes.

    Raises:
      UnknownName: there is no such optimizer or wrapper.
    """
    optimizer = get(name)
    if (word := _source_word(name)) is not None:
        paper = sources()[word].paper(get(name[name.index(f"{word}:") :]))
        # Learned numbers have no spaces; what a wrapper adds has.
        own = {key: np.asarray(optimizer.hyperparameters[key]).tolist() for key in optimizer.spaces}
        return Description(name, paper, True, (), own, optimizer.spaces, {})
    needs: tuple[str, ...] = ("value_fn",) if name == "sam" or "sam:" in name else ()
    entry, paper = _row(name)
    defaults = {key: np.asarray(value).tolist() for key, value in optimizer.hyperparameters.items()}
    return Description(
        name=name,
        paper=paper,
        tuning_free=name in _tuning_free(),
        needs=(*entry.needs, *(need for need in needs if need not in entry.needs)),
        defaults=defaults,
        spaces=optimizer.spaces,
        settings=settings(name),
    )


def _source_word(name: str) -> str | None:
    """The word of the source that makes the optimizer inside all wrappers; None for registered ones."""
    return next((word for word in name.split(":")[:-1] if word in sources()), None)


def _row(name: str) -> tuple[Entry, Paper]:
    """The table's row for the optimizer inside all wrappers, and the paper of the name."""
    paper, base = None, name.rsplit(":", 1)[-1]
    while base in aliases():
        paper = paper or aliases()[base].paper
        base = aliases()[base].name.rsplit(":", 1)[-1]
    return TABLE[base], paper or TABLE[base].paper


def settings(name: str) -> dict[str, Any]:
    """Plain settings that `get` takes and that are no leaves, of the optimizer and of its wrappers.

    Raises:
      UnknownName: there is no such optimizer or wrapper.
    """
    get(name)
    sourced = _source_word(name) is not None
    made = [PREFIXES[word] for word in name.split(":")[:-1] if word in PREFIXES]
    found = {}
    for part in made if sourced else (_row(name)[0], *made):
        parameters = inspect.signature(part.factory).parameters
        found |= {key: parameter.default for key, parameter in parameters.items()} | dict(part.defaults)
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, bool | int | str) and key != "learning_rate"
    }
