"""The contract of a learned optimizer: array leaves are meta-parameters, all else plain settings."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from outeropt import checkpoint
from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer


class LearnedOptimizer(Optimizer):
    """An optimizer whose array leaves are meta-parameters.

    A subclass is one architecture. Its constructor takes `key` (randomness of the initial meta-parameters)
    and plain settings with defaults, by keyword; each setting is a static field of the same name, so that a
    file can say how to build the same optimizer again.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """The plain settings that the constructor was given, by name."""
        taken = inspect.signature(type(self).__init__).parameters
        fields = {field.name for field in dataclasses.fields(self)}
        return {name: getattr(self, name) for name in taken if name in fields}

    def with_settings(self, **settings: Any) -> Self:
        """A copy with the same meta-parameters under other settings, of which they must be as many.

        Args:
          **settings: those that change; the others stay.

        Raises:
          TypeError: the architecture has no such setting.
          ConfigError: with these settings it has other meta-parameters.
        """
        fresh = type(self)(**{**self.settings, **settings})
        ours, theirs = self.hyperparameters, fresh.hyperparameters
        if {name: leaf.shape for name, leaf in ours.items()} != {n: leaf.shape for n, leaf in theirs.items()}:
            raise ConfigError(
                f"{type(self).__name__} with {settings} has other meta-parameters than with {self.settings}."
            )
        return fresh.replace(ours)  # pyright: ignore[reportReturnType]

    @property
    def published_names(self) -> dict[str, str]:
        """For each leaf, the path of the same array in checkpoints of the code that published the method."""
        return {}

    def from_published(self, arrays: Mapping[str, Array | np.ndarray]) -> Self:
        """A copy with meta-parameters that another program trained.

        Args:
          arrays: arrays by their path in that program's checkpoint, such as `"nn/~/w0"`.

        Raises:
          ConfigError: the architecture has no published form, an array is missing, or its size differs.
        """
        leaves = self.hyperparameters
        names = self.published_names
        if not names:
            raise ConfigError(f"{type(self).__name__} has no published form to read weights from.")
        values = {}
        for name, path in names.items():
            if path not in arrays:
                raise ConfigError(
                    f"The weights have no array {path!r}, which {type(self).__name__} needs; "
                    f"they have {', '.join(sorted(arrays)[:8])} ..."
                )
            value = jnp.asarray(arrays[path], jnp.float32)
            if value.size != leaves[name].size:
                raise ConfigError(
                    f"{path!r} has shape {value.shape}; {type(self).__name__} with the settings "
                    f"{self.settings} needs {leaves[name].shape}."
                )
            values[name] = value.reshape(leaves[name].shape)
        # A checkpoint's weights are taken as they are.
        return self.replace(values)  # pyright: ignore[reportReturnType]

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Writes architecture, settings and meta-parameters to one safetensors file, which `load` reads.

        Args:
          path: the file, by custom `NAME.safetensors`.
          about: JSON values to keep beside them: how the weights were made.

        Raises:
          OuteroptError: the file cannot be written.

        Examples:
          >>> import jax
          >>> from outeropt import learned
          >>> mine = learned.AdafacMLP(key=jax.random.key(0), hidden_size=8)
          >>> mine.save("mine.safetensors", {"why": "an example"})
          >>> learned.load("mine.safetensors").settings["hidden_size"], learned.about("mine.safetensors")
          (8, {'why': 'an example'})
        """
        description = {"architecture": type(self).__name__, "settings": self.settings, "about": about or {}}
        checkpoint.save(path, self, description)
