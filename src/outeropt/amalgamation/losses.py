"""What a student is trained on: its own loss, and its distance from its teachers."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from outeropt.errors import ConfigError


Reduction = Literal["max", "mean"]
Weighting = Literal["mean", "sum", "final"]
Objective = Literal["log", "ratio"]
Mixture = Literal["sum", "switch", "imitation", "meta"]

_CHOICES = {
    "reduction": ("max", "mean"),
    "weighting": ("mean", "sum", "final"),
    "objective": ("log", "ratio"),
    "mixture": ("sum", "switch", "imitation", "meta"),
}


class Losses(eqx.Module):
    """The loss of an unroll. Huang et al. 2022, arXiv 2203.06474, equations 1 to 4.

    With L_i the student's training loss before step i and L0_i that of the parameters at the start of the
    unroll on the same minibatch, and D_ik the student's distance from teacher k after step i,

        meta = sum_i w_i [log(L_i + epsilon) - log(L0_i + epsilon)]
        imitation = sum_i w_i R_k D_ik
        loss = meta + p imitation

    One teacher, such as a choice policy that was trained first, makes this choice amalgamation.

    Attributes:
      reduction: R, the maximum over teachers (min-max amalgamation) or their mean.
      weighting: of the inner steps: 1/N each, 1 each, or the last alone.
      objective: `"log"` as above; `"ratio"` takes L_i / L0_i, and the exponential of the distance.
      mixture: `"sum"` as above; `"switch"` takes the imitation loss with probability p and the meta-loss
        otherwise; `"imitation"` and `"meta"` take one of the two.
      huber: where the square in the distance gives way to a straight line; 0 for squares everywhere.
      epsilon: keeps logarithms finite.

    Raises:
      ConfigError: a choice is unknown, or a number is not in its range.
    """

    reduction: Reduction = eqx.field(static=True, default="max")
    weighting: Weighting = eqx.field(static=True, default="mean")
    objective: Objective = eqx.field(static=True, default="log")
    mixture: Mixture = eqx.field(static=True, default="sum")
    huber: float = eqx.field(static=True, default=0.0)
    epsilon: float = eqx.field(static=True, default=1e-10)

    def __check_init__(self):
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r} is unknown; it is {' or '.join(allowed)}."
                )
        if not (0 <= self.huber < math.inf and 0 < self.epsilon < math.inf):
            raise ConfigError(f"huber = {self.huber} must be at least 0, epsilon = {self.epsilon} above 0.")

    def distance(self, student: PyTree, teacher: PyTree) -> Float[Array, ""]:
        """`log(sum of h(student - teacher) + epsilon) - log(coordinates)`, `h(x) = x^2 / 2`."""
        pairs = list(zip(jax.tree.leaves(student), jax.tree.leaves(teacher)))
        parts = [jnp.sum(self._penalty(a - b)) for a, b in pairs]
        count = sum(a.size for a, _ in pairs)
        return jnp.log(sum(parts) + self.epsilon) - math.log(count)

    def weights(self, length: int) -> Float[Array, " length"]:
        """The weight of each inner step of an unroll."""
        if self.weighting == "final":
            return jnp.zeros(length).at[-1].set(1.0)
        return jnp.full(length, 1.0 / length if self.weighting == "mean" else 1.0)

    def meta(
        self,
        losses: Float[Array, " steps"],
        initial: Float[Array, " steps"],
        counts: Bool[Array, " steps"],
    ) -> Float[Array, ""]:
        """The student's own loss; steps that do not count are worth no change, and have no gradient."""
        # What they hold are numbers whose derivatives are none.
        own = jnp.where(counts, losses, 1.0) + self.epsilon
        first = jnp.where(counts, initial, 1.0) + self.epsilon
        values = jnp.log(own) - jnp.log(first) if self.objective == "log" else own / first
        return jnp.sum(self.weights(len(losses)) * values)

    def imitation(
        self, distances: Float[Array, "steps teachers"], counts: Bool[Array, " steps"]
    ) -> Float[Array, ""]:
        """The distance from the teachers, over the steps that count; 0 without teachers."""
        if not distances.shape[1]:
            return jnp.zeros(())
        values = jnp.where(counts[:, None], distances, 0.0)
        values = jnp.max(values, axis=1) if self.reduction == "max" else jnp.mean(values, axis=1)
        values = values if self.objective == "log" else jnp.exp(values)
        return jnp.sum(jnp.where(counts, self.weights(len(values)) * values, 0.0))

    def mix(self, p: Float[Array, ""], key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The weights of the meta-loss and of the imitation loss in one outer step."""
        one, none = jnp.float32(1.0), jnp.float32(0.0)
        if self.mixture == "sum":
            return one, p
        if self.mixture == "switch":
            imitates = jax.random.bernoulli(key, p).astype(jnp.float32)
            return 1.0 - imitates, imitates
        return (none, one) if self.mixture == "imitation" else (one, none)

    def _penalty(self, difference: Float[Array, "..."]) -> Float[Array, "..."]:
        if not self.huber:
            return 0.5 * jnp.square(difference)
        size = jnp.abs(difference)
        straight = self.huber * (size - 0.5 * self.huber)
        return jnp.where(size <= self.huber, 0.5 * jnp.square(difference), straight)
