"""AdafacMLP, also called small_fc: a per-parameter MLP on momenta and Adafactor's second moments."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from outeropt.learned import tensorwise
from outeropt.learned.features import TIME_SCALES
from outeropt.learned.mlps.moment_mlp import MomentMLP
from outeropt.learned.moments import FEATURES, Decays, Sources
from outeropt.learned.networks import MLP, check_sizes


class AdafacMLP(MomentMLP):
    """A small network moves each parameter by `-step_mult direction exp(exp_mult magnitude)`.

    Its inputs are 28 normalised features of the parameter (`moments.moment_features`) and 11 of the time; its
    outputs are direction and magnitude. Metz, Freeman, Harrison, Maheswaranathan and Sohl-Dickstein 2022,
    "Practical tradeoffs between memory, compute, and performance in learned optimizers" (arXiv 2203.11860).

    Updates may follow a schedule over the run, which the paper does not have: that small steps help at the
    end is known beforehand, and takes an evolution strategy long to find.

    Attributes:
      net: the network, 39 inputs and 2 outputs.
      decays: meta-learned decays of the accumulators.
      hidden_size: units in each hidden layer.
      hidden_layers: number of hidden layers.
      step_mult: scale of the step.
      exp_mult: scale of the magnitude's exponent.
      schedule: `"constant"`; or all updates shrink to 0 at the end of the run, in a line (`"linear"`) or half
        a cosine (`"cosine"`). `init` then needs the length of the run.
    """

    net: MLP
    decays: Decays
    hidden_size: int = eqx.field(static=True)
    hidden_layers: int = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    schedule: str = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        hidden_size: int = 4,
        hidden_layers: int = 2,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        schedule: str = "constant",
    ):
        """Raises `ConfigError` for a number of units or layers below 1, or an unknown schedule."""
        check_sizes(hidden_size=hidden_size, hidden_layers=hidden_layers)
        key = jax.random.key(0) if key is None else key
        self.net = MLP(FEATURES + len(TIME_SCALES), (hidden_size,) * hidden_layers, 2, key)
        self.decays = Decays()
        self.hidden_size = hidden_size
        self.hidden_layers = hidden_layers
        self.step_mult = step_mult
        self.exp_mult = exp_mult
        self.schedule = tensorwise.known_schedule(schedule)

    @property
    def _needs_means(self) -> bool:
        return False

    def _finish(self, outputs: Sequence[Array], sources: Sources) -> Array:
        """The update from the network's outputs."""
        del sources
        direction, magnitude = outputs
        return -self.step_mult * direction * jnp.exp(self.exp_mult * magnitude)
