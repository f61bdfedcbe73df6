"""HyperV2, the architecture of VeLO: a network for each tensor writes the network of its parameters."""

import math
from collections.abc import Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt import tree
from outeropt.errors import ConfigError
from outeropt.learned.base import LearnedOptimizer
from outeropt.learned.moments import Moments
from outeropt.learned.networks import MLP, check_sizes
from outeropt.learned.per_parameter import per_parameter
from outeropt.learned.per_tensor.hyper_controller import Controller
from outeropt.learned.per_tensor.hyper_features import (
    PARAMETER_FEATURES,
    TENSOR_FEATURES,
    LossTrend,
    parameter_features,
    parameter_sources,
    tensor_inputs,
    updated_moments,
)
from outeropt.optimizer import Params


# Arrays that make up the first layer of a published bank, one for each group of features.
_GROUPS = 14
_GRADIENT_LIMIT = 1000.0


class HyperV2State(eqx.Module):
    """State of `HyperV2`. Tensors are in the order of the leaves of the parameters.

    Attributes:
      moments: accumulators of each tensor.
      hidden: what the LSTM said of each tensor.
      cell: its memory of each tensor.
      trend: the course of the loss, and the count of steps.
      num_steps: length of the run.
    """

    moments: list[Moments]
    hidden: Float[Array, "tensors lstm"]
    cell: Float[Array, "tensors lstm"]
    trend: LossTrend
    num_steps: Float[Array, ""]


class HyperV2(LearnedOptimizer):
    """A per-tensor LSTM mixes a bank of tiny per-parameter networks, and sets a step size for each tensor.

    For a tensor with controls c and step size a, from the LSTM, and a bank of networks with weights W_k:

        net = 100 mean_k(c_k W_k)            from 30 features to direction, magnitude (and an unused output)
        update = -step_mult a direction exp(exp_mult magnitude) sqrt(mean(p^2) + 1e-9)

    The LSTM sees the elapsed share of the run, the course of the training loss, and each tensor's parameters
    and moments before this gradient; the per-parameter networks see the moments after it. Gradients are
    clipped to +-1000. Metz et al. 2022, "VeLO: Training Versatile Learned Optimizers by Scaling Up" (arXiv
    2211.09760); VeLO itself has `lstm_hidden_size=512, param_inits=256`.

    Three oddities of the published architecture are kept, because weights depend on them. The first of the
    three maps in front of the LSTM has no effect. The third output of the per-parameter networks has none
    either. The spread of the second moments, which the LSTM sees, is taken around the means of the momenta.

    `init` needs `num_steps`, and `update` needs the training loss `value`.

    Attributes:
      controller: the network that looks at tensors.
      bank: the networks that are mixed, along the first axis of each array.
      lstm_hidden_size: units of the LSTM.
      param_inits: networks in the bank.
      ff_hidden_size: units in each hidden layer of the per-parameter networks.
      ff_hidden_layers: number of these layers.
      mix_layers: whether tensors see, through a maximum over all of them, each other's features.
      exp_mult: scale of the magnitude's exponent.
      step_mult: scale of the step.
      param_scale_mult: whether the step is multiplied by the parameters' root mean square.
      clip_param_scale_amount: the largest such factor, over the root of the tensor's size; None for no limit.
      precondition_output: whether the step is divided by `sqrt(v + 1e-6)`, with v the second moment.
      rnn_state_decay: share of the LSTM's state that is forgotten after each step, in [0, 1].
      with_validation_feature_dim: whether the LSTM is told what it works for: `validation_mode`.
      validation_mode: whether it works for the validation loss rather than the training loss.
      use_bugged_next_lstm_state: keep the LSTM's first state for ever, as some published weights need.
      use_bugged_loss_features: average the loss over 10 steps ten times over, as weights trained with the
        published default need.
    """

    controller: Controller
    bank: MLP
    lstm_hidden_size: int = eqx.field(static=True)
    param_inits: int = eqx.field(static=True)
    ff_hidden_size: int = eqx.field(static=True)
    ff_hidden_layers: int = eqx.field(static=True)
    mix_layers: bool = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    param_scale_mult: bool = eqx.field(static=True)
    clip_param_scale_amount: float | None = eqx.field(static=True)
    precondition_output: bool = eqx.field(static=True)
    rnn_state_decay: float = eqx.field(static=True)
    with_validation_feature_dim: bool = eqx.field(static=True)
    validation_mode: bool = eqx.field(static=True)
    use_bugged_next_lstm_state: bool = eqx.field(static=True)
    use_bugged_loss_features: bool = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        lstm_hidden_size: int = 128,
        param_inits: int = 64,
        ff_hidden_size: int = 4,
        ff_hidden_layers: int = 2,
        mix_layers: bool = True,
        exp_mult: float = 1e-3,
        step_mult: float = 1e-3,
        param_scale_mult: bool = True,
        clip_param_scale_amount: float | None = None,
        precondition_output: bool = False,
        rnn_state_decay: float = 0.0,
        with_validation_feature_dim: bool = False,
        validation_mode: bool = False,
        use_bugged_next_lstm_state: bool = False,
        use_bugged_loss_features: bool = False,
    ):
        self.lstm_hidden_size = lstm_hidden_size
        self.param_inits = param_inits
        self.ff_hidden_size = ff_hidden_size
        self.ff_hidden_layers = ff_hidden_layers
        self.mix_layers = mix_layers
        self.exp_mult = exp_mult
        self.step_mult = step_mult
        self.param_scale_mult = param_scale_mult
        self.clip_param_scale_amount = clip_param_scale_amount
        self.precondition_output = precondition_output
        self.rnn_state_decay = rnn_state_decay
        self.with_validation_feature_dim = with_validation_feature_dim
        self.validation_mode = validation_mode
        self.use_bugged_next_lstm_state = use_bugged_next_lstm_state
        self.use_bugged_loss_features = use_bugged_loss_features
        self._check()

        key = jax.random.key(0) if key is None else key
        controller_key, bank_key = jax.random.split(key)
        inputs = TENSOR_FEATURES + with_validation_feature_dim
        self.controller = Controller(inputs, lstm_hidden_size, param_inits, mix_layers, controller_key)
        hidden = (ff_hidden_size,) * ff_hidden_layers
        bank_keys = jax.random.split(bank_key, param_inits)
        self.bank = jax.vmap(lambda k: MLP(PARAMETER_FEATURES, hidden, 3, k))(bank_keys)

    def _check(self) -> None:
        """Settings that make no sense are errors."""
        check_sizes(
            lstm_hidden_size=self.lstm_hidden_size,
            param_inits=self.param_inits,
            ff_hidden_size=self.ff_hidden_size,
            ff_hidden_layers=self.ff_hidden_layers,
        )
        if not 0.0 <= self.rnn_state_decay <= 1.0:
            raise ConfigError(f"rnn_state_decay must lie in [0, 1], not be {self.rnn_state_decay}.")
        if self.validation_mode and not self.with_validation_feature_dim:
            raise ConfigError("validation_mode says nothing without with_validation_feature_dim=True.")
        if self.clip_param_scale_amount is not None:
            if self.clip_param_scale_amount <= 0.0:
                raise ConfigError(
                    "clip_param_scale_amount must be above 0, or None for no limit; "
                    f"it is {self.clip_param_scale_amount}."
                )
            if not self.param_scale_mult:
                raise ConfigError("clip_param_scale_amount limits nothing without param_scale_mult=True.")

    @property
    def published_names(self) -> dict[str, str]:
        """Names in learned_optimization's checkpoints; the first layer of the bank is split there."""
        mixing = {"mixing.0": "linear", "mixing.1": "linear_1", "mixing.2": "linear_2"}
        after = {"lstm.gates": "rnn/linear", "controls": "rnn_to_controls", "step_size": "step_size"}
        modules = mixing | after if self.mix_layers else after
        names = {f"controller.first_{part}": f"lstm_init_state/{part}" for part in ("hidden", "cell")}
        for ours, theirs in modules.items():
            names[f"controller.{ours}.weight"] = f"rnn_params/{theirs}/w"
            names[f"controller.{ours}.bias"] = f"rnn_params/{theirs}/b"
        for i in range(self.ff_hidden_layers + 1):
            names[f"bank.layers.{i}.weight"] = f"ff_mod_stack/~/w{i}"
            names[f"bank.layers.{i}.bias"] = f"ff_mod_stack/~/b{i}"
        return names

    def from_published(self, arrays: Mapping[str, Array | np.ndarray]) -> Self:
        """A copy with published weights, given by their path in a checkpoint (`"rnn_params/rnn/linear/w"`).

        Raises:
          ConfigError: an array is missing, or its size differs.
        """
        first = "ff_mod_stack/~/w0"
        parts = [f"{first}__{i}" for i in range(_GROUPS)]
        missing = [part for part in parts if part not in arrays]
        if missing:
            raise ConfigError(f"The weights have no array {missing[0]!r}, which HyperV2 needs.")
        joined = np.concatenate([arrays[part] for part in parts], axis=1)
        return super().from_published({**arrays, first: joined})

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> HyperV2State:
        """The state before the first step.

        Raises:
          ConfigError: `num_steps` is not given, or below 1.
        """
        del key
        if num_steps is None:
            raise ConfigError(
                "HyperV2 plans for the whole run and needs its length: give num_steps, "
                "as in init(params, num_steps=10_000) or as_optax(num_steps=10_000)."
            )
        # By NumPy: while a program is traced, JAX would compare even known numbers in the program.
        if not isinstance(num_steps, Tracer) and np.any(np.asarray(num_steps) < 1):
            raise ConfigError(f"num_steps must be at least 1, not {num_steps}.")
        leaves = jax.tree.leaves(params)
        length = jnp.asarray(num_steps, jnp.float32)
        span = jnp.float32(10) if self.use_bugged_loss_features else length
        first = (self.controller.first_hidden, self.controller.first_cell)
        hidden, cell = (jnp.broadcast_to(x, (len(leaves), self.lstm_hidden_size)) for x in first)
        moments = [Moments.zeros(jnp.atleast_1d(p)) for p in leaves]
        return HyperV2State(moments, hidden, cell, LossTrend.start(span), length)

    def update(
        self, grads: Params, state: HyperV2State, params: Params, **context: Any
    ) -> tuple[Params, HyperV2State]:
        """One step, with the training loss at `params` as `value`.

        Raises:
          ConfigError: `value` is missing.
        """
        if context.get("value") is None:
            raise ConfigError("HyperV2 reads the training loss: give it as update(..., value=loss).")
        trend = state.trend.updated(jnp.asarray(context["value"], jnp.float32))
        leaves, structure = jax.tree.flatten(params)
        if not leaves:  # all parameters masked away
            return grads, HyperV2State([], state.hidden, state.cell, trend, state.num_steps)
        ps = [jnp.atleast_1d(p).astype(jnp.float32) for p in leaves]
        gs = [
            jnp.clip(jnp.atleast_1d(g).astype(jnp.float32), -_GRADIENT_LIMIT, _GRADIENT_LIMIT)
            for g in structure.flatten_up_to(grads)
        ]
        elapsed = state.trend.count.astype(jnp.float32) / state.num_steps
        ranks = [sum(length > 1 for length in p.shape) for p in leaves]
        x = tensor_inputs(elapsed, trend, ps, state.moments, ranks)
        if self.with_validation_feature_dim:
            mode = jnp.full((len(leaves), 1), self.validation_mode, jnp.float32)
            x = jnp.concatenate([x, mode], axis=1)
        controls, step_sizes, (hidden, cell) = self.controller(x, (state.hidden, state.cell))
        if self.use_bugged_next_lstm_state:
            hidden, cell = state.hidden, state.cell
        hidden, cell = (1.0 - self.rnn_state_decay) * hidden, (1.0 - self.rnn_state_decay) * cell

        share = 100.0 / self.param_inits
        nets = jax.tree.map(lambda w: jnp.tensordot(share * controls, w, axes=1), self.bank)
        moments = [updated_moments(old, g) for old, g in zip(state.moments, gs)]
        updates = [
            self._step(tree.take(nets, i), step_sizes[i], p, g, new).reshape(leaf.shape).astype(leaf.dtype)
            for i, (leaf, p, g, new) in enumerate(zip(leaves, ps, gs, moments))
        ]
        return structure.unflatten(updates), HyperV2State(moments, hidden, cell, trend, state.num_steps)

    def _step(
        self, net: MLP, step_size: Float[Array, ""], p: Array, g: Array, moments: Moments
    ) -> Float[Array, "*shape"]:
        """The update of one tensor by its own per-parameter network."""
        direction, magnitude, _ = per_parameter(
            net.layers, parameter_features, parameter_sources(g, p, moments), p.shape
        )
        scale = -self.step_mult * step_size
        if self.param_scale_mult:
            size = jnp.sqrt(jnp.mean(jnp.square(p)) + 1e-9)
            if self.clip_param_scale_amount is not None:
                size = jnp.minimum(size, self.clip_param_scale_amount * math.sqrt(p.size))
            scale = scale * size
        step = scale * direction * jnp.exp(self.exp_mult * magnitude)
        return step * jax.lax.rsqrt(moments.rms[-1] + 1e-6) if self.precondition_output else step
