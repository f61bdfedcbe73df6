"""Controllers of a hyperparameter: from its last signals to how far it should be from its base."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import OuteroptError
from outeropt.space import Space


COEFFICIENT = Space.linear(-1.0, 1.0, allowed=(-1e6, 1e6))


class Controller(eqx.Module):
    """One controller for each of several hyperparameters, side by side along the first axis of every leaf."""

    @property
    @abc.abstractmethod
    def memory(self) -> int:
        """How many signals it sees."""

    @property
    @abc.abstractmethod
    def leaves(self) -> int:
        """How many hyperparameters it drives."""

    @abc.abstractmethod
    def __call__(self, window: Float[Array, "leaves memory"]) -> Float[Array, " leaves"]:
        """The outputs, from each hyperparameter's last signals, newest first."""


class LinearController(Controller):
    """`sum_i M_i s_(t-i)`.

    Attributes:
      coefficients: M, by hyperparameter and age of the signal; zeros hold still.
    """

    coefficients: Float[Array, "leaves memory"]

    @classmethod
    def zeros(cls, leaves: int = 1, memory: int = 8) -> "LinearController":
        """A controller that holds still."""
        _check(leaves=leaves, memory=memory)
        return cls(jnp.zeros((leaves, memory), jnp.float32))

    @property
    def memory(self) -> int:
        return self.coefficients.shape[-1]

    @property
    def leaves(self) -> int:
        return self.coefficients.shape[-2]

    def __call__(self, window: Float[Array, "leaves memory"]) -> Float[Array, " leaves"]:
        return jnp.sum(self.coefficients * window.astype(self.coefficients.dtype), axis=-1)


class NetworkController(Controller):
    """`v . tanh(W s + b) + c`, with `s` the last signals.

    Attributes:
      hidden: W.
      hidden_bias: b.
      output: v; zeros at first, so that a new controller holds still.
      output_bias: c; zero at first.
    """

    hidden: Float[Array, "leaves width memory"]
    hidden_bias: Float[Array, "leaves width"]
    output: Float[Array, "leaves width"]
    output_bias: Float[Array, " leaves"]

    @classmethod
    def random(
        cls, key: PRNGKeyArray, leaves: int = 1, memory: int = 8, width: int = 16
    ) -> "NetworkController":
        """A controller that holds still, with random features (standard deviation `memory ** -0.5`)."""
        _check(leaves=leaves, memory=memory, width=width)
        hidden = jax.random.normal(key, (leaves, width, memory), jnp.float32) / jnp.sqrt(jnp.float32(memory))
        zeros = jnp.zeros((leaves, width), jnp.float32)
        return cls(hidden, zeros, jnp.zeros_like(zeros), jnp.zeros((leaves,), jnp.float32))

    @property
    def memory(self) -> int:
        return self.hidden.shape[-1]

    @property
    def leaves(self) -> int:
        return self.hidden.shape[-3]

    def __call__(self, window: Float[Array, "leaves memory"]) -> Float[Array, " leaves"]:
        window = window.astype(self.hidden.dtype)
        inside = jnp.tanh(jnp.sum(self.hidden * window[:, None, :], axis=-1) + self.hidden_bias)
        return jnp.sum(self.output * inside, axis=-1) + self.output_bias


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise OuteroptError(f"A controller's {name} must be at least 1, not {value}.")
