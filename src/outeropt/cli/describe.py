"""`outeropt describe`: what a name stands for."""

import dataclasses

import tyro

from outeropt.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Config:
    """Say what a task, optimizer, learned optimizer (learned:NAME), set or dataset is."""

    name: tyro.conf.Positional[str]
    """Its name."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt import data, optimizers, tasks
    from outeropt.bench import sets
    from outeropt.bench.learned_names import WORD

    name = config.name
    prefix = name.partition(":")[0]
    if name.startswith(WORD):
        print(_learned(name))
    elif name in optimizers.names() or prefix in optimizers.prefixes():
        print(optimizers.describe(name))
    elif name in tasks.names() or ".py:" in name:
        print(_facts(tasks.describe(name)))
    elif name in data.names():
        print(data.describe(name))
    elif name in (known := sets.names()) or name.endswith((".yaml", ".yml")) or sets.takes_weights(name):
        print(_facts(dataclasses.asdict(sets.get(name))))
    else:
        every = [*optimizers.names(), *tasks.names(), *data.names(), *known]
        raise unknown_name("task, optimizer, set or dataset", name, every)


def _learned(name: str) -> str:
    """Paper, architecture, settings and origin of a learned optimizer."""
    from outeropt import learned
    from outeropt.bench.learned_names import WORD

    weights = name.removeprefix(WORD)
    optimizer = learned.load(weights)
    leaves = optimizer.hyperparameters.values()
    facts = {
        "name": name,
        "paper": str(learned.paper(optimizer)),
        "architecture": type(optimizer).__name__,
        "settings": optimizer.settings,
        "meta-parameters": f"{sum(leaf.size for leaf in leaves)} in {len(leaves)} arrays",
        **{f"made with {name}": value for name, value in learned.about(weights).items()},
    }
    return _facts(facts)


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
