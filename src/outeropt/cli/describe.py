"""`outeropt describe`: what a name stands for."""

import dataclasses
import inspect
from collections.abc import Collection
from typing import Any

import tyro

from outeropt.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Config:
    """Say what a task, optimizer, set or dataset is, a learned optimizer (learned:NAME), or how one is made:
    an architecture or an estimator.
    """

    name: tyro.conf.Positional[str]
    """Its name."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt import data, learned, metatraining, optimizers, tasks
    from outeropt.bench import collections, sets
    from outeropt.bench.learned_names import WORD
    from outeropt.optimizers.registry import sources

    name = config.name
    prefix = name.partition(":")[0]
    if name.startswith(WORD):
        print(_learned(name))
    elif name in optimizers.names() or prefix in {*optimizers.prefixes(), *sources()}:
        print(optimizers.describe(name))
    elif tasks.known(name) or ".py:" in name:
        print(_facts(tasks.describe(name)))
    elif name in data.names():
        print(data.describe(name))
    elif name in learned.ARCHITECTURES:
        print(_architecture(name))
    elif name in metatraining.ESTIMATORS:
        print(_estimator(name))
    elif name in collections.names():
        print(_facts(dataclasses.asdict(collections.get(name))))
    elif name in (known := sets.names()) or name.endswith((".yaml", ".yml")) or sets.takes_weights(name):
        print(_facts(dataclasses.asdict(sets.get(name))))
    else:
        every = [*optimizers.names(), *tasks.names(), *data.names(), *collections.names(), *known]
        every += [*learned.ARCHITECTURES, *metatraining.ESTIMATORS]
        raise unknown_name("task, optimizer, set or dataset", name, every)


def _learned(name: str) -> str:
    """Paper, architecture, settings and origin of a learned optimizer."""
    from outeropt import learned
    from outeropt.bench.learned_names import WORD

    weights = name.removeprefix(WORD)
    optimizer = learned.load(weights)
    facts = {
        "name": name,
        "paper": str(learned.paper(optimizer)),
        "architecture": type(optimizer).__name__,
        "settings": _written(optimizer.settings),
        "meta-parameters": _size(optimizer.hyperparameters.values()),
        **{f"made with {name}": value for name, value in learned.about(weights).items()},
    }
    return _facts(facts)


def _architecture(name: str) -> str:
    """Paper, settings with their defaults, and size of an architecture."""
    import equinox as eqx
    import jax

    from outeropt import learned

    kind = learned.ARCHITECTURES[name]
    optimizer = eqx.filter_eval_shape(kind)
    facts = {
        "name": name,
        "paper": str(learned.paper(optimizer)),
        "what": _first_paragraph(kind),
        "settings": _written(optimizer.settings),
        "meta-parameters": _size(jax.tree.leaves(optimizer)),
    }
    return _facts(facts)


def _estimator(name: str) -> str:
    """Settings of an estimator, with their defaults."""
    from outeropt import metatraining

    kind = metatraining.ESTIMATORS[name]
    facts = {"name": name, "what": _first_paragraph(kind)}
    settings = {key: parameter.default for key, parameter in inspect.signature(kind).parameters.items()}
    if settings.pop("lengths", None):
        facts["lengths of trajectories"] = "length, or low and high between which they are drawn; required"
    if settings.get("length") is inspect.Parameter.empty:
        settings["length"] = "(required)"
    return _facts({**facts, "settings": settings})


def _written(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as `--settings.NAME` takes them."""
    return {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in settings.items()
    }


def _size(leaves: Collection[Any]) -> str:
    return f"{sum(leaf.size for leaf in leaves)} in {len(leaves)} arrays"


def _first_paragraph(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _facts(facts: dict) -> str:
    lines = [str(facts["name"])]
    for key, value in facts.items():
        if key == "name" or value is None or value in ((), [], {}, ""):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{name} = {_short(item)}" for name, item in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(map(_short, value))
        lines.append(f"  {key.replace('_', ' ')}: {_short(value)}")
    return "\n".join(lines)


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
