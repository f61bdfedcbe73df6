"""Learned optimizers by the names that they have everywhere in this package, and from files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from outeropt.errors import ConfigError
from outeropt.torch.learned import files
from outeropt.torch.learned.adafac_mlp import AdafacMLP
from outeropt.torch.learned.base import LearnedOptimizer
from outeropt.torch.learned.mlp_nominal import MLPNominal
from outeropt.torch.learned.rnnprop import RNNProp
from outeropt.torch.optimizer import Params
from outeropt.weight_files import names


ARCHITECTURES: dict[str, type[LearnedOptimizer]] = {
    kind.__name__: kind for kind in (AdafacMLP, MLPNominal, RNNProp)
}


def load(weights: str | Path, params: Params, **settings: Any) -> LearnedOptimizer:
    """A learned optimizer from a file: what `outeropt metatrain`, `amalgamate` or `learned.save` wrote.

    Args:
      weights: a file, a folder of `metatrain` or `amalgamate`, or a name that ships with the package.
      params: parameters or groups of them, as for `torch.optim.Optimizer`.
      **settings: what its class takes: `lr`, `num_steps`, and settings in place of those in the file.

    Raises:
      UnknownName: there is no such file, or no such setting.
      OuteroptError: the file is damaged, or of an architecture that is not there in PyTorch.
    """
    architecture = files.read(weights).architecture
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"{weights} holds a {architecture}, not there in PyTorch; {', '.join(ARCHITECTURES)} are."
        )
    return ARCHITECTURES[architecture](params, weights, **settings)


def _named(weights: str) -> Callable[..., LearnedOptimizer]:
    return lambda params, **settings: load(weights, params, **settings)


NAMED: dict[str, Callable[..., LearnedOptimizer]] = {f"learned:{name}": _named(name) for name in names()}
