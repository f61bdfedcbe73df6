"""MLPNominal: AdafacMLP's network beside a hand-designed step and a weight decay, which it may scale."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.learned import tensorwise
from outeropt.learned.features import TIME_SCALES
from outeropt.learned.mlps.moment_mlp import MomentMLP
from outeropt.learned.moments import FEATURES, Decays, Sources
from outeropt.learned.networks import MLP, check_sizes


def _mean_momentum(sources: Sources) -> Float[Array, "*shape"]:
    # A sum of slices: XLA fuses it with what follows, which it does not do with a reduction.
    first, second, third = (sources.momentum[i] for i in range(3))
    return (first + second + third) / 3.0


def _inverse_root(sources: Sources) -> Float[Array, "*shape"]:
    return jax.lax.rsqrt(sources.rms[0] + 1e-6)


# What the nominal step follows, by the name of the optimizer that would.
ESTIMATES: dict[str, Callable[[Sources], Array]] = {
    "SGD": lambda sources: sources.grad[0],
    "SGDM": lambda sources: sources.momentum[-1],
    "AggMo": _mean_momentum,
    "Adam": lambda sources: sources.momentum[-1] * _inverse_root(sources),
    "AdamAggMo": lambda sources: _mean_momentum(sources) * _inverse_root(sources),
}


class MLPNominal(MomentMLP):
    """A network's step, a nominal step and a weight decay, added up.

        update = -step_mult direction exp(exp_mult[0] magnitude)
                 -nominal_stepsize exp(exp_mult[1] nominal) estimate
                 -weight_decay exp(exp_mult[2] regularization) params

    `direction`, `magnitude`, `nominal` and `regularization` are the outputs of a network with the inputs of
    `AdafacMLP`. The nominal step is that of a hand-designed optimizer: it keeps training stable where the
    network errs, and the network corrects it. Harrison, Metz and Sohl-Dickstein 2022, "A closer look at
    learned optimization: stability, robustness, and inductive biases" (arXiv 2209.11208), in the form of the
    authors' code. With the defaults, which switch both terms off, it is an `AdafacMLP`.

    Attributes:
      net: the network, 39 inputs and 4 outputs.
      decays: meta-learned decays of the accumulators.
      hidden_size: units in each hidden layer.
      hidden_layers: number of hidden layers.
      step_mult: scale of the network's step.
      exp_mult: scales of the three exponents.
      nominal_stepsize: scale of the nominal step, at least 0.
      weight_decay: share of the parameters that a step takes off, at least 0.
      nominal_controller: whether the network scales the nominal step; without it `nominal` is 1.
      regularization_controller: whether the network scales the decay; without it `regularization` is 0.
      nominal_grad_estimator: what the nominal step follows. `"SGD"`: the gradient; `"SGDM"`: its slowest
        average; `"AggMo"`: the mean of its three averages; `"Adam"`, `"AdamAggMo"`: the last two times
        `rsqrt(v + 1e-6)`, where v averages the gradient's square.
      aggregate_magnitude: whether one magnitude, the mean over a tensor, serves all its parameters.
      aggregate_nom_magnitude: the same for `nominal`.
      aggregate_reg_magnitude: the same for `regularization`. (The authors' code cannot run with this setting;
        here it does what its name says.)
      normalize_blackbox: whether the network's step is multiplied with `rsqrt(v + 1e-6)`.
      selfnormalize_blackbox: whether the network's step is multiplied with the mean of the tensor's gradient.
      schedule: of the sum of all three, as in `AdafacMLP`.
    """

    net: MLP
    decays: Decays
    hidden_size: int = eqx.field(static=True)
    hidden_layers: int = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: tuple[float, float, float] = eqx.field(static=True)
    nominal_stepsize: float = eqx.field(static=True)
    weight_decay: float = eqx.field(static=True)
    nominal_controller: bool = eqx.field(static=True)
    regularization_controller: bool = eqx.field(static=True)
    nominal_grad_estimator: str = eqx.field(static=True)
    aggregate_magnitude: bool = eqx.field(static=True)
    aggregate_nom_magnitude: bool = eqx.field(static=True)
    aggregate_reg_magnitude: bool = eqx.field(static=True)
    normalize_blackbox: bool = eqx.field(static=True)
    selfnormalize_blackbox: bool = eqx.field(static=True)
    schedule: str = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        hidden_size: int = 4,
        hidden_layers: int = 2,
        step_mult: float = 1e-3,
        exp_mult: tuple[float, float, float] = (1e-3, 1e-3, 1e-3),
        nominal_stepsize: float = 0.0,
        weight_decay: float = 0.0,
        nominal_controller: bool = False,
        regularization_controller: bool = False,
        nominal_grad_estimator: str = "AdamAggMo",
        aggregate_magnitude: bool = False,
        aggregate_nom_magnitude: bool = False,
        aggregate_reg_magnitude: bool = False,
        normalize_blackbox: bool = False,
        selfnormalize_blackbox: bool = False,
        schedule: str = "constant",
    ):
        """Random weights.

        Raises:
          ConfigError: an unknown `nominal_grad_estimator` or schedule, other than three `exp_mult`, or a
            value out of its range.
        """
        if nominal_grad_estimator not in ESTIMATES:
            raise ConfigError(
                f"There is no nominal_grad_estimator = {nominal_grad_estimator!r}; "
                f"give one of {', '.join(ESTIMATES)}."
            )
        if len(exp_mult) != 3:
            raise ConfigError(
                f"exp_mult = {exp_mult} has {len(exp_mult)} numbers; give three, for the exponents of the "
                "network's step, the nominal step and the weight decay."
            )
        for name, value in {"nominal_stepsize": nominal_stepsize, "weight_decay": weight_decay}.items():
            if not value >= 0:
                raise ConfigError(f"{name} must be at least 0, not {value}.")
        check_sizes(hidden_size=hidden_size, hidden_layers=hidden_layers)
        key = jax.random.key(0) if key is None else key
        self.net = MLP(FEATURES + len(TIME_SCALES), (hidden_size,) * hidden_layers, 4, key)
        self.decays = Decays()
        self.hidden_size = hidden_size
        self.hidden_layers = hidden_layers
        self.step_mult = step_mult
        self.exp_mult = (exp_mult[0], exp_mult[1], exp_mult[2])
        self.nominal_stepsize = nominal_stepsize
        self.weight_decay = weight_decay
        self.nominal_controller = nominal_controller
        self.regularization_controller = regularization_controller
        self.nominal_grad_estimator = nominal_grad_estimator
        self.aggregate_magnitude = aggregate_magnitude
        self.aggregate_nom_magnitude = aggregate_nom_magnitude
        self.aggregate_reg_magnitude = aggregate_reg_magnitude
        self.normalize_blackbox = normalize_blackbox
        self.selfnormalize_blackbox = selfnormalize_blackbox
        self.schedule = tensorwise.known_schedule(schedule)

    @property
    def _needs_means(self) -> bool:
        """Whether a parameter's update depends on means over its tensor."""
        return (
            self.aggregate_magnitude
            or self.aggregate_nom_magnitude
            or self.aggregate_reg_magnitude
            or self.selfnormalize_blackbox
        )

    def _finish(self, outputs: Sequence[Float[Array, "*shape"]], sources: Sources) -> Float[Array, "*shape"]:
        """The update from the network's four outputs."""
        direction, magnitude, nominal, regularization = outputs
        step = self.step_mult * direction * _scale(self.exp_mult[0], magnitude, self.aggregate_magnitude)
        if self.normalize_blackbox:
            step = step * _inverse_root(sources)
        if self.selfnormalize_blackbox:
            step = step * jnp.mean(sources.grad)
        if self.nominal_stepsize:
            nominal = nominal if self.nominal_controller else 1.0
            scale = _scale(self.exp_mult[1], nominal, self.aggregate_nom_magnitude)
            step = step + self.nominal_stepsize * scale * ESTIMATES[self.nominal_grad_estimator](sources)
        if self.weight_decay:
            regularization = regularization if self.regularization_controller else 0.0
            scale = _scale(self.exp_mult[2], regularization, self.aggregate_reg_magnitude)
            step = step + self.weight_decay * scale * sources.params[0]
        return -step


def _scale(exp_mult: float, magnitude: Array | float, one_for_all: bool) -> Array:
    """`exp(exp_mult magnitude)`, or of the magnitude's mean over the tensor."""
    return jnp.exp(exp_mult * (jnp.mean(magnitude) if one_for_all else magnitude))
