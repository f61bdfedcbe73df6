"""The choice among any optimizers."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt import optimizers
from outeropt.errors import ConfigError
from outeropt.learned.choices.base import ChoicePolicy, decaying, mean_shares, mixed
from outeropt.learned.choices.selection import check_selection
from outeropt.learned.coordinatewise import coordinates, keras_cells
from outeropt.learned.coordinatewise.base import check_warm_up
from outeropt.learned.coordinatewise.keras_cells import LSTMStack, LSTMState
from outeropt.learned.networks import Linear
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.arithmetic import widen


SMALL_POOL = ("root_rmsprop,eps=1e-7", "static_adam,learning_rate=0.02")
LARGE_POOL = (
    *("sgd,learning_rate=2", "ema_momentum,learning_rate=2", *SMALL_POOL),
    *("powersign,learning_rate=1", "addsign,learning_rate=1"),
)

_TIMES = {"linear": lambda time: time.astype(jnp.float32) / 2000.0, "decaying": decaying}
# Tensors of these numbers of axes have a flag that the network reads.
_RANKS = (1, 2, 3)


class ChoicePoolState(NamedTuple):
    """State of `ChoicePool`.

    Attributes:
      members: the states of the pool's members.
      time: steps so far.
      lstms: the network's state.
      shares: mean weight of each member in the last step.
    """

    members: tuple[OptState, ...]
    time: Int[Array, ""]
    lstms: LSTMState
    shares: Float[Array, " members"]


class ChoicePool(ChoicePolicy):
    """A `ChoicePolicy` among optimizers of one's own.

    The u_j are the pool's updates as they would be applied, with the members' own learning rates, and the
    network reads

        x = [-u_0, ..., -u_(P-1), time, rank = 1, rank = 2, rank = 3]

    where the rank is that of the coordinate's tensor. With an `lr_multiplier_scale` s above 0, a second map
    of the network's output scales each update: `u_j exp(s tanh(h w' + b'))`, from w' = b' = 0 on.

    Huang et al., "Optimizer amalgamation", 2022, arXiv 2203.06474, in the form of its code. There the time
    that the network reads is `t / 2000`, without a bound: a later line overwrites the intended
    `1 / (1 + t / 2000)`, which is `time_feature="decaying"` here. Rank 4, that of convolutions, has no flag.

    The members' numbers are part of the settings and no meta-parameters. Members see whole tensors, so that
    methods that normalise or clip by tensor are welcome, and what the inner loop offers.

    Attributes:
      lstms: the network.
      scores: the map from its output to the members' scores.
      multipliers: the map to the members' multipliers; None for `lr_multiplier_scale` 0.
      pool: the members, as `optimizers.from_text` reads them. `SMALL_POOL`, the default, and `LARGE_POOL` are
        those of the paper's two teachers.
      hidden_sizes: hidden units of each layer.
      selection: see `ChoicePolicy`.
      hardness: see `ChoicePolicy`.
      time_feature: `"linear"`, as published, or `"decaying"`.
      lr_multiplier_scale: logarithm of the largest multiplier of an update, at least 0.
      warmup_steps: see `Coordinatewise`.
      warmup_rate: see `Coordinatewise`.
    """

    lstms: LSTMStack
    scores: Linear
    multipliers: Linear | None
    pool: tuple[str, ...] = eqx.field(static=True)
    hidden_sizes: tuple[int, ...] = eqx.field(static=True)
    selection: str = eqx.field(static=True)
    hardness: float = eqx.field(static=True)
    time_feature: str = eqx.field(static=True)
    lr_multiplier_scale: float = eqx.field(static=True)
    warmup_steps: int = eqx.field(static=True)
    warmup_rate: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        pool: tuple[str, ...] = SMALL_POOL,
        hidden_sizes: tuple[int, ...] = (20, 20),
        selection: str = "soft",
        hardness: float = 10.0,
        time_feature: str = "linear",
        lr_multiplier_scale: float = 0.0,
        warmup_steps: int = 0,
        warmup_rate: float = 0.05,
    ):
        """Raises an `OuteroptError` for a pool or another setting that cannot be used."""
        if isinstance(pool, str) or not pool:
            raise ConfigError(
                f"pool = {pool!r} must be a list of optimizers, such as {list(SMALL_POOL)} (see from_text)."
            )
        if time_feature not in _TIMES:
            raise ConfigError(f"There is no time_feature = {time_feature!r}; give {' or '.join(_TIMES)}.")
        if not 0 <= lr_multiplier_scale < float("inf"):
            raise ConfigError(f"lr_multiplier_scale must be a number from 0 on, not {lr_multiplier_scale}.")
        self.pool, self.hidden_sizes = tuple(pool), tuple(hidden_sizes)
        self.selection, self.hardness = check_selection(selection, hardness)
        self.time_feature, self.lr_multiplier_scale = time_feature, float(lr_multiplier_scale)
        self.warmup_steps, self.warmup_rate = check_warm_up(warmup_steps, warmup_rate)
        size = len(self.children())
        lstm_key, score_key = jax.random.split(jax.random.key(0) if key is None else key)
        self.lstms = LSTMStack(size + 1 + len(_RANKS), self.hidden_sizes, lstm_key)
        self.scores = keras_cells.dense(self.hidden_sizes[-1], size, score_key)
        self.multipliers = Linear(self.hidden_sizes[-1], size, None) if lr_multiplier_scale else None

    def children(self) -> tuple[Optimizer, ...]:
        """The members of the pool."""
        return tuple(optimizers.from_text(text) for text in self.pool)

    @property
    def members(self) -> tuple[str, ...]:
        names = [text.partition(",")[0].strip() for text in self.pool]
        twice = {name for name in names if names.count(name) > 1}
        return tuple(f"{name}_{index}" if name in twice else name for index, name in enumerate(names))

    def start(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> ChoicePoolState:
        wide = widen(params)
        states = tuple(member.init(wide, num_steps=num_steps, key=key) for member in self.children())
        count = sum(coordinates.sizes(params))
        shares, time = jnp.zeros((len(self.pool),), jnp.float32), jnp.zeros((), jnp.int32)
        return ChoicePoolState(states, time, self.lstms.zeros(count), shares)

    def step(
        self, grads: Params, state: ChoicePoolState, params: Params, **context: Any
    ) -> tuple[Params, ChoicePoolState]:
        wide_grads, wide_params = widen(grads), widen(params)
        found = [
            member.update(wide_grads, own, wide_params, **context)
            for member, own in zip(self.children(), state.members)
        ]
        moves = -jnp.stack([coordinates.flatten(updates) for updates, _ in found])
        x = jnp.concatenate([moves, self._situation(state.time, params, moves.shape[1])])
        weights, out, lstms = self.choose(x, state.lstms, context)
        if self.multipliers is not None:
            moves = moves * jnp.exp(self.lr_multiplier_scale * jnp.tanh(self.multipliers.by_features(out)))
        following = ChoicePoolState(
            tuple(own for _, own in found), state.time + 1, lstms, mean_shares(weights)
        )
        return coordinates.restore(-mixed(weights, moves), params), following

    def watch(self, grads: Params, state: ChoicePoolState, params: Params, **context: Any) -> ChoicePoolState:
        wide_grads, wide_params = widen(grads), widen(params)
        members = tuple(
            member.observe(wide_grads, own, wide_params, **context)
            for member, own in zip(self.children(), state.members)
        )
        return state._replace(members=members, time=state.time + 1)

    def _situation(self, time: Array, params: Params, count: int) -> Float[Array, "features coordinates"]:
        """The time and the flags of ranks, for all coordinates."""
        ranks = np.array([[leaf.ndim == rank for rank in _RANKS] for leaf in jax.tree.leaves(params)])
        flags = coordinates.spread(jnp.asarray(ranks, jnp.float32), coordinates.sizes(params)).T
        return jnp.concatenate([jnp.broadcast_to(_TIMES[self.time_feature](time), (1, count)), flags])

    @property
    def published_names(self) -> dict[str, str]:
        # No published policy has multipliers; the name is ours.
        more = keras_cells.dense_names("multipliers", "learning_rate") if self.multipliers else {}
        return {**super().published_names, **more}
