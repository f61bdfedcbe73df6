"""What choice policies share: an LSTM that scores the members of a pool, and the shares that they get."""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from outeropt.learned.choices.selection import select
from outeropt.learned.coordinatewise import keras_cells
from outeropt.learned.coordinatewise.base import Coordinatewise
from outeropt.learned.coordinatewise.keras_cells import LSTMStack, LSTMState
from outeropt.learned.networks import Linear
from outeropt.optimizer import OptState


class ChoicePolicy(Coordinatewise):
    """A learned optimizer that mixes the updates u_j of a pool, with weights for each coordinate.

        h, state = LSTMs(x, state)      c = select(h w + b)      update = sum over j of c_j u_j

    What x and u are is the subclass's. The state holds the mean of c over all coordinates in the last step;
    `diagnostics` calls it `share.MEMBER`.

    Attributes:
      lstms: the network.
      scores: the map from its output to the members' scores.
      hidden_sizes: hidden units of each layer.
      selection: `"soft"`, `"gumbel"` or `"hard"`, see `selection.select`. A policy that is meant to choose is
        meta-trained with `"gumbel"` and then used `with_settings(selection="hard")`.
      hardness: inverse temperature of `"gumbel"`.
    """

    lstms: eqx.AbstractVar[LSTMStack]
    scores: eqx.AbstractVar[Linear]
    hidden_sizes: eqx.AbstractVar[tuple[int, ...]]
    selection: eqx.AbstractVar[str]
    hardness: eqx.AbstractVar[float]

    @property
    @abc.abstractmethod
    def members(self) -> tuple[str, ...]:
        """Names of the pool's members, no two alike."""

    def choose(
        self, x: Float[Array, "inputs coordinates"], state: LSTMState, context: Mapping[str, Any]
    ) -> tuple[Float[Array, "members coordinates"], Float[Array, "hidden coordinates"], LSTMState]:
        """The members' weights, the network's output and its next state."""
        out, following = self.lstms(x, state)
        key = context.get("key")
        # A member that draws from the step's key as it is must not see this noise.
        key = None if key is None else jax.random.fold_in(key, len(self.members))
        weights = select(self.scores.by_features(out), self.selection, self.hardness, key)
        return weights, out, following

    def diagnostics(self, state: OptState) -> dict[str, Array]:
        shares = self.policy_state(state).shares
        return {f"share.{name}": shares[index] for index, name in enumerate(self.members)}

    @property
    def published_names(self) -> dict[str, str]:
        lstms = keras_cells.lstm_names("lstms", len(self.hidden_sizes))
        return {**lstms, **keras_cells.dense_names("scores", "choice")}


def mixed(
    weights: Float[Array, "members coordinates"], moves: Float[Array, "members coordinates"]
) -> Float[Array, " coordinates"]:
    """The weighted sum of the members' moves."""
    return jnp.sum(weights * moves, axis=0)


def mean_shares(weights: Float[Array, "members coordinates"]) -> Float[Array, " members"]:
    """Each member's mean weight; it carries no derivative."""
    return jax.lax.stop_gradient(jnp.sum(weights, axis=1) / max(weights.shape[1], 1))


def decaying(time: Array, horizon: float = 2000.0) -> Float[Array, ""]:
    """The time as a number that falls from 1, `1 / (1 + t / 2000)`."""
    return 1.0 / (1.0 + time.astype(jnp.float32) / horizon)
