"""The contract of an unrollable system: what an estimator needs to know of whatever it differentiates."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree


class Outcome(eqx.Module):
    """What one step of a system gives to an estimator.

    Attributes:
      loss: the meta-loss of this step.
      counts: whether the loss counts; a system may spend a step on starting anew.
      fresh: whether, from this step on, the trajectory is another one than at the start of the unroll. Only
        systems that start anew on their own ever say so; estimators start trajectories between unrolls.
    """

    loss: Float[Array, ""]
    counts: Bool[Array, ""] = eqx.field(default_factory=lambda: jnp.bool_(True))
    fresh: Bool[Array, ""] = eqx.field(default_factory=lambda: jnp.bool_(False))


class System(eqx.Module):
    """A parametrised system that is unrolled in time: an optimizer training a task, a policy, a simulation.

    `theta`, the meta-parameters, is any pytree of floating arrays (an `Optimizer` is one). Everything is
    unbatched: estimators `vmap` over particles. The two sides of an antithetic pair share setup and keys.
    """

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray) -> PyTree:
        """The setup of one trajectory, which does not depend on theta: which task, which data."""

    @abc.abstractmethod
    def init(self, theta: PyTree, setup: PyTree, length: Int[Array, ""], key: PRNGKeyArray) -> PyTree:
        """The state before the first step of a trajectory that will have `length` steps."""

    @abc.abstractmethod
    def step(
        self, theta: PyTree, setup: PyTree, state: PyTree, step: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[PyTree, Outcome]:
        """The next state and this step's outcome.

        Args:
          theta: the meta-parameters.
          setup: what `draw` gave.
          state: what `init` or the last `step` gave.
          step: number of this step in the trajectory, from 0.
          key: randomness of this step.
        """
