"""What `metatrain` and `amalgamate` share: the learned optimizer that they start from, and its settings."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, get_origin, get_type_hints

from outeropt.cli.values import coerce, plain
from outeropt.errors import ConfigError, unknown_name


if TYPE_CHECKING:
    from outeropt.learned import LearnedOptimizer


class Start(Protocol):
    """The part of a configuration that says what is learned."""

    @property
    def architecture(self) -> str | None: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def weights(self) -> str | None: ...
    @property
    def seed(self) -> int: ...


def start(config: Start, default: str = "AdafacMLP") -> "LearnedOptimizer":
    """A fresh optimizer of an architecture, or the one that the weights are.

    Raises:
      UnknownName: no such architecture, setting or weights.
      ConfigError: a value of another type, or an architecture beside weights of another one.
    """
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
    name = config.architecture or default
    settings = dict(config.settings)
    if name in learned.ARCHITECTURES:
        kinds = get_type_hints(learned.ARCHITECTURES[name].__init__)
        settings = read(name, {key: kind for key, kind in kinds.items() if key != "key"}, settings)
    return learned.build(name, settings, jax.random.key(config.seed))


def with_settings(optimizer: "LearnedOptimizer", settings: Mapping[str, Any]) -> "LearnedOptimizer":
    """The optimizer under other settings.

    Raises:
      UnknownName: it has no such setting.
      ConfigError: a value of another type, or one that needs other meta-parameters.
    """
    kinds = get_type_hints(type(optimizer).__init__)
    known = {name: kinds[name] for name in optimizer.settings}
    return optimizer.with_settings(**read(type(optimizer).__name__, known, settings))


def read(whose: str, kinds: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
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


def check_seed(seed: int) -> None:
    """Raises `ConfigError` for a number that is no seed."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"Seed {seed} is not allowed; seeds are whole numbers from 0 to {2**32 - 1}.")
