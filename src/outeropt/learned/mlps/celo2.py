"""Celo2: a learned optimizer whose update has no unit, so that an ordinary learning rate sets the step."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt import tree
from outeropt.errors import ConfigError
from outeropt.learned.base import LearnedOptimizer
from outeropt.learned.features import accumulate
from outeropt.learned.mlps.orthogonalize import orthogonalize
from outeropt.learned.moments import Moments, Sources
from outeropt.learned.networks import MLP, Linear, check_sizes
from outeropt.optimizer import OptState, Params


MOMENTUM = (0.9, 0.99, 0.999)
RMS = (0.95,)
FACTORED = (0.9, 0.99, 0.999)
# Decays and epsilon of the rule for vectors.
B1, B2, EPS = 0.9, 0.95, 1e-8

# Sizes of the 14 groups of features, in the order in which published weights hold them.
GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
HARNESSES = ("none", "orthogonal")


class VectorMoments(NamedTuple):
    """Accumulators of a tensor that the rule for vectors moves.

    Attributes:
      mean: moving average of the gradient.
      square: moving average of its square.
    """

    mean: Float[Array, "*shape"]
    square: Float[Array, "*shape"]


class Celo2State(NamedTuple):
    """State of `Celo2`.

    Attributes:
      step: steps taken.
      moments: accumulators of each tensor, in the order of the leaves of the parameters.
    """

    step: Int[Array, ""]
    moments: list[Moments | VectorMoments]


class Celo2(LearnedOptimizer):
    """A per-parameter network whose output is divided by its own root mean square (RMS).

    For a tensor with parameters p and gradient g clipped to [-1000, 1000], the accumulators, from zero and
    without bias correction, are

        m_d = d m_d + (1 - d) g                for d in 0.9, 0.99, 0.999
        v = 0.95 v + 0.05 g^2
        r_d, c_d = averages of g^2 + 1e-30 over rows and over columns, for the same d (Adafactor's)

    `r_d` and `c_d` make a factor `f_d` (see `features.Factored.factors`). The 30 features are, in 14 groups,

        g, clip(g, -0.1, 0.1), p, m, v, m q, q, g f, g q, r, c, (r + 1e-8)^-1/2, (c + 1e-8)^-1/2, m f

    with `q = (v + 1e-8)^-1/2`; tensors below rank 2 have the first nine groups only. With
    `N(x) = x / sqrt(1e-9 + mean(x^2))`, the mean being over the last two axes (or the only one), and network
    outputs a, b of the normalised features N(.):

        u = a exp(exp_mult b)                  u <- orthogonalize(u), in the orthogonal harness
        update = -learning_rate (N(u) + weight_decay p)

    The orthogonal harness moves tensors below rank 2, and those whose path matches `vector_pattern`, by AdamW
    instead, with decays 0.9 and 0.95, bias correction and rate `vector_rate * learning_rate`. Axes before the
    last two count as a batch of matrices.

    Moudgil, Knyazev and Belilovsky 2026, "Celo2: Towards Learned Optimization Free Lunch" (arXiv 2602.19142);
    the constants are those of the authors' code (github.com/amoudgl/celo2). Their weights "celo2" go with the
    orthogonal harness and "celo2-base" with none. For a schedule, multiply the updates: they are proportional
    to the learning rate.

    Attributes:
      net: the network. Its third output has no use; published weights have it.
      harness: "orthogonal" or "none".
      learning_rate: root mean square of a tensor's update, weight decay aside.
      weight_decay: decoupled decay, of all tensors.
      vector_rate: learning rate of vectors over that of matrices, in the orthogonal harness.
      vector_pattern: a regular expression; matrices whose dotted path it matches somewhere, in whatever case,
        count as vectors. The empty text matches none.
      exp_mult: scale of the magnitude's exponent. With 0, as published, the magnitude has no effect.
      hidden_size: units in each hidden layer.
      hidden_layers: number of hidden layers.
    """

    net: MLP
    harness: str = eqx.field(static=True)
    learning_rate: float = eqx.field(static=True)
    weight_decay: float = eqx.field(static=True)
    vector_rate: float = eqx.field(static=True)
    vector_pattern: str = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)
    hidden_layers: int = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        harness: str = "orthogonal",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        vector_rate: float = 1.0,
        vector_pattern: str = "embed",
        exp_mult: float = 0.0,
        hidden_size: int = 8,
        hidden_layers: int = 2,
    ):
        """Random weights.

        Raises:
          ConfigError: no such harness, `vector_pattern` is no regular expression, or a size is below 1.
        """
        if harness not in HARNESSES:
            raise ConfigError(f"harness must be one of {', '.join(HARNESSES)}, not {harness!r}.")
        try:
            re.compile(vector_pattern)
        except re.error as error:
            raise ConfigError(
                f"vector_pattern {vector_pattern!r} is no regular expression ({error})."
            ) from None
        check_sizes(hidden_size=hidden_size, hidden_layers=hidden_layers)
        key = jax.random.key(0) if key is None else key
        self.net = MLP(sum(GROUPS), (hidden_size,) * hidden_layers, 3, key)
        self.harness = harness
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.vector_rate = vector_rate
        self.vector_pattern = vector_pattern
        self.exp_mult = exp_mult
        self.hidden_size = hidden_size
        self.hidden_layers = hidden_layers

    @property
    def published_names(self) -> dict[str, str]:
        """Names in the authors' checkpoints, which cut `w0` into `w0__0` to `w0__13`, one for each group."""
        names = {}
        for i in range(self.hidden_layers + 1):
            names |= {
                f"net.layers.{i}.weight": f"ff_mod_stack/~/w{i}",
                f"net.layers.{i}.bias": f"ff_mod_stack/~/b{i}",
            }
        return names

    def from_published(self, arrays: Mapping[str, Array | np.ndarray]) -> Self:
        """As in `LearnedOptimizer`; the parts of the first layer are joined."""
        first = "ff_mod_stack/~/w0"
        parts = [f"{first}__{i}" for i in range(len(GROUPS))]
        missing = [part for part in parts if part not in arrays]
        if missing:
            raise ConfigError(f"The weights have no array {missing[0]!r}, which Celo2 needs.")
        joined = np.concatenate([np.asarray(arrays[part], np.float32) for part in parts])
        return super().from_published({**arrays, first: joined})

    def init(self, params: Params, *, num_steps: Any = None, key: PRNGKeyArray | None = None) -> OptState:
        """All accumulators zero; the length of the run has no influence."""
        del num_steps, key

        def one(path, param):
            if self._is_vector(path, param):
                return VectorMoments(*(jnp.zeros_like(param, dtype=jnp.float32) for _ in range(2)))
            return Moments.zeros(jnp.atleast_1d(param))

        return Celo2State(jnp.int32(0), [one(*leaf) for leaf in jtu.tree_leaves_with_path(params)])

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        del context
        step = state.step + 1
        leaves, structure = jtu.tree_flatten_with_path(params)
        updates, moments = [], []
        for (path, param), grad, old in zip(leaves, structure.flatten_up_to(grads), state.moments):
            p, g = param.astype(jnp.float32), grad.astype(jnp.float32)
            if self._is_vector(path, param):
                rate = self.vector_rate * self.learning_rate
                move, new = _vector_move(old, g, step)
            else:
                rate = self.learning_rate
                move, new = self._learned_move(old, jnp.atleast_1d(g), jnp.atleast_1d(p))
            update = -rate * (move.reshape(p.shape) + self.weight_decay * p)
            updates.append(update.astype(param.dtype))
            moments.append(new)
        return jtu.tree_unflatten(structure, updates), Celo2State(step, moments)

    def _is_vector(self, path: tuple[Any, ...], param: Array) -> bool:
        if self.harness == "none":
            return False
        named = self.vector_pattern and re.search(self.vector_pattern, tree.leaf_name(path), re.IGNORECASE)
        return param.ndim < 2 or bool(named)

    def _learned_move(
        self, old: Moments, grad: Float[Array, "*shape"], param: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Moments]:
        """What is subtracted from a tensor at learning rate 1, and its accumulators."""
        grad = jnp.clip(grad, -1000.0, 1000.0)
        new = Moments(
            accumulate(jnp.asarray(MOMENTUM, jnp.float32), old.momentum, grad),
            accumulate(jnp.asarray(RMS, jnp.float32), old.rms, jnp.square(grad)),
            old.factored.updated(jnp.asarray(FACTORED, jnp.float32), grad),
        )
        groups = feature_groups(new.sources(grad, param))
        direction, magnitude, _ = normalized_network(self.net.layers, groups, grad.shape)
        move = direction * jnp.exp(self.exp_mult * magnitude)
        if self.harness == "orthogonal":
            move = orthogonalize(move)
        return move * _inverse_rms(move, move.ndim), new


def _vector_move(
    old: VectorMoments, grad: Float[Array, "*shape"], step: Int[Array, ""]
) -> tuple[Float[Array, "*shape"], VectorMoments]:
    """Adam's direction, and its accumulators."""
    t = step.astype(jnp.float32)
    new = VectorMoments(B1 * old.mean + (1.0 - B1) * grad, B2 * old.square + (1.0 - B2) * jnp.square(grad))
    mean, square = new.mean / (1.0 - B1**t), new.square / (1.0 - B2**t)
    # The tiny number keeps the gradient of the root finite where the square is zero.
    return mean / (jnp.sqrt(square + 1e-30) + EPS), new


def feature_groups(sources: Sources) -> list[Float[Array, "features ..."]]:
    """The groups of features before normalisation, as in `Celo2`: 14, or 9 below rank 2.

    Features that are constant along an axis have length 1 there.
    """
    s = sources
    inverse = jax.lax.rsqrt(s.rms + 1e-8)
    groups = [
        s.grad,
        jnp.clip(s.grad, -0.1, 0.1),
        s.params,
        s.momentum,
        s.rms,
        s.momentum * inverse,
        inverse,
        s.grad * s.row_factor * s.col_factor,
        s.grad * inverse,
    ]
    if s.grad.ndim > 2:
        groups += [
            s.row,
            s.col,
            jax.lax.rsqrt(s.row + 1e-8),
            jax.lax.rsqrt(s.col + 1e-8),
            s.momentum * s.row_factor * s.col_factor,
        ]
    return groups


def normalized_network(
    layers: Sequence[Linear], groups: Sequence[Float[Array, "features ..."]], shape: tuple[int, ...]
) -> Float[Array, "outputs *shape"]:
    """A ReLU network applied to each parameter of a tensor, on features divided by their root mean squares.

    All features together are never in memory: each group meets its rows of the first layer by itself, and
    the division is folded into them; groups that are constant along an axis are spread out afterwards.

    Args:
      layers: of the network. Where it has more inputs than there are features, the last ones are left out.
      groups: features whose axes after the first have the tensor's length or 1.
      shape: the tensor's, of rank 1 or more.
    """
    first, *others = layers
    units = jnp.broadcast_to(first.bias.reshape(-1, *(1,) * len(shape)), (first.bias.size, *shape))
    ends = np.cumsum([group.shape[0] for group in groups])
    for group, end in zip(groups, ends):
        weight = first.weight[end - group.shape[0] : end]
        units = units + jnp.broadcast_to(_first_layer(weight, group), units.shape)
    units = units.reshape(units.shape[0], -1)
    for layer in others:
        units = layer.weight.T @ jax.nn.relu(units) + layer.bias[:, None]
    return units.reshape(-1, *shape)


def _first_layer(
    weight: Float[Array, "features units"], group: Float[Array, "features ..."]
) -> Float[Array, "units ..."]:
    """What some features, divided by their root mean squares, give to each unit."""
    features, *shape = group.shape
    matrices = int(np.prod(shape[:-2]))
    scales = _inverse_rms(group, len(shape)).reshape(features, matrices, 1)
    folded = jnp.expand_dims(weight, 1) * scales
    product = jnp.einsum("fmu,fmn->umn", folded, group.reshape(features, matrices, -1))
    return product.reshape(-1, *shape)


def _inverse_rms(x: Float[Array, "*shape"], rank: int) -> Float[Array, "..."]:
    """`1 / sqrt(1e-9 + mean(x^2))` over the last two axes (below rank 2: the last), kept with length 1."""
    axes = tuple(range(-min(rank, 2), 0))
    return jax.lax.rsqrt(1e-9 + jnp.mean(jnp.square(x), axis=axes, keepdims=True))
