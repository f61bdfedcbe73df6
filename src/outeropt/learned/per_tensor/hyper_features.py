"""What HyperV2 looks at: how far the run is, the course of its loss, tensors as a whole, and each parameter.

Metz et al. 2022, "VeLO: Training Versatile Learned Optimizers by Scaling Up" (arXiv 2211.09760), with the
constants of the authors' code.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from outeropt.learned.moments import FACTORED, FEATURES, MOMENTUM, RMS, Moments, Sources, moment_features
from outeropt.learned.per_tensor.tensor_statistics import log_magnitude


# Shares of the run's length around which the network can tell the time.
FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
# Averages of the loss, and the number of steps over which the first one averages.
AVERAGES = 10
SHORTEST = 10.0
# Tensors of this rank or higher look alike.
RANKS = 5

TENSOR_FEATURES = len(FRACTIONS) + AVERAGES - 1 + len(RMS) + RANKS + 2 * len(MOMENTUM)
PARAMETER_FEATURES = FEATURES + 2


def fraction_embedding(fraction: Float[Array, ""]) -> Float[Array, "9"]:
    """`tanh(10 (fraction - c))` for each of the nine `FRACTIONS` c."""
    return jnp.tanh((fraction - jnp.asarray(FRACTIONS, jnp.float32)) * 10.0)


class LossTrend(eqx.Module):
    """Moving averages of the training loss, from over 10 steps to over the whole run.

    Attributes:
      means: the averages, not corrected for their start from zero.
      minima: the smallest value that each corrected average has had.
      rates: one over the steps that each spans; an average decays by `exp(-rate)` in a step.
      count: losses taken in so far.
    """

    means: Float[Array, "10"]
    minima: Float[Array, "10"]
    rates: Float[Array, "10"]
    count: Int[Array, ""]

    @classmethod
    def start(cls, num_steps: Float[Array, ""]) -> "LossTrend":
        """Before the first loss; the averages span 10 to `num_steps` steps, evenly in the logarithm."""
        shares = jnp.linspace(0.0, 1.0, AVERAGES, dtype=jnp.float32)
        rates = (SHORTEST / num_steps) ** shares / SHORTEST
        return cls(jnp.zeros_like(rates), jnp.full_like(rates, 1e12), rates, jnp.int32(0))

    def updated(self, loss: Float[Array, ""]) -> "LossTrend":
        """With one more loss, cut off at twice the largest average so that spikes do not drown the rest."""
        count = self.count + 1
        weight = self._weight(count)
        # As published: the averages before this loss, corrected with the count that includes it.
        largest = jnp.where(self.count == 0, loss, jnp.max(self.means / weight))
        loss = jnp.minimum(loss, 2.0 * jnp.abs(largest))
        means = jnp.exp(-self.rates) * self.means - jnp.expm1(-self.rates) * loss
        return LossTrend(means, jnp.minimum(self.minima, means / weight), self.rates, count)

    def features(self) -> Float[Array, "9"]:
        """Where each average stands between its minimum (-1) and the next longer average (0), within [-1, 1].

        Zero for the first two losses, which are too few to tell averages apart.
        """
        levels = self.means / self._weight(jnp.maximum(self.count, 1))
        lows = self.minima[:-1]
        place = (levels[:-1] - lows) / jnp.maximum(levels[1:] - lows, 1e-8)
        return jnp.where(self.count <= 2, 0.0, jnp.clip(place - 1.0, -1.0, 1.0))

    def _weight(self, count: Int[Array, ""]) -> Float[Array, "10"]:
        """`1 - exp(-rate count)`, the sum of the weights of `count` losses; exact for long runs too."""
        return -jnp.expm1(-self.rates * count.astype(jnp.float32))


def tensor_statistics(param: Float[Array, "*shape"], moments: Moments) -> Float[Array, "7"]:
    """How large and how uneven a tensor's moments m, v are, relative to its parameters.

    With `n = rsqrt(max(mean(p^2), 1e-9))`: `n mean(v)`, `n^2 var(m)` (3) and `n^2 mean((v - mean(m))^2)` (3).
    """
    momentum, rms = moments.momentum, moments.rms
    axes = tuple(range(1, momentum.ndim))
    mean_m, var_m = jnp.mean(momentum, axis=axes), jnp.var(momentum, axis=axes)
    mean_v, var_v = jnp.mean(rms, axis=axes), jnp.var(rms, axis=axes)
    n = jax.lax.rsqrt(jnp.maximum(jnp.mean(jnp.square(param)), 1e-9))
    around_m = var_v + jnp.square(mean_v - mean_m)
    return jnp.concatenate([n * mean_v, jnp.square(n) * var_m, jnp.square(n) * around_m])


def tensor_inputs(
    elapsed: Float[Array, ""],
    trend: LossTrend,
    params: Sequence[Float[Array, "..."]],
    moments: Sequence[Moments],
    ranks: Sequence[int],
) -> Float[Array, "tensors 30"]:
    """What the LSTM sees of each tensor.

    Args:
      elapsed: share of the run that is over, 0 at the first step.
      trend: of the loss, this step's included.
      params: the tensors.
      moments: their accumulators before this step's gradient.
      ranks: how many axes above length 1 each has.

    Returns:
      In the order of the published networks: share of the run (9), course of the loss (9), log magnitude of
      the mean of v, one-hot rank (5, all zero from rank 5), log magnitudes of the variances of m (3) and of
      v around the means of m (3).
    """
    run = jnp.concatenate([fraction_embedding(elapsed), trend.features()])
    statistics = jnp.stack([tensor_statistics(p, m) for p, m in zip(params, moments)])
    logs = 0.5 * log_magnitude(10.0 * statistics)
    hot = jnp.asarray([[rank == n for n in range(RANKS)] for rank in ranks], jnp.float32)
    run = jnp.broadcast_to(run, (len(params), run.size))
    return jnp.concatenate([run, logs[:, :1], hot, logs[:, 1:]], axis=1)


def updated_moments(moments: Moments, grad: Float[Array, "*shape"]) -> Moments:
    """With one more gradient, at fixed decays."""
    # At decay 0, the factored moments of this gradient alone.
    fresh = moments.factored.updated(jnp.zeros(len(FACTORED), jnp.float32), grad)
    return Moments(
        _average(MOMENTUM, moments.momentum, grad[None]),
        _average(RMS, moments.rms, jnp.square(grad)[None]),
        jax.tree.map(lambda old, new: _average(FACTORED, old, new), moments.factored, fresh),
    )


def parameter_sources(
    grad: Float[Array, "*shape"], param: Float[Array, "*shape"], moments: Moments
) -> Sources:
    """What the features of the parameters are made of; the moments must have taken in `grad` already."""
    sources = moments.sources(grad, param)
    # Below rank 2 the momenta are divided by sqrt(v) itself.
    return sources._replace(momentum_factor=_inverse_root(sources.row)) if grad.ndim < 2 else sources


def parameter_features(sources: Sources) -> list[Array]:
    """The 30 features of each parameter before normalisation, in the order of the published networks.

    The 28 of `moment_features` and two more: the gradient within +-0.1, as the second, and the gradient over
    the root of the second moment, after the gradient preconditioned by the factored moments.
    """
    grad, param, *rest = moment_features(sources)
    moments, factored = rest[:11], rest[11:]
    scaled = grad * jax.lax.rsqrt(sources.rms[0] + 1e-6)
    return [grad, jnp.clip(grad, -0.1, 0.1), param, *moments, scaled, *factored]


def _average(
    decays: tuple[float, ...], old: Float[Array, "decays *shape"], new: Float[Array, "#decays *shape"]
) -> Float[Array, "decays *shape"]:
    """`d old + (1 - d) new`, with `1 - d` right to the last bit: from a float32 d = 0.999 it is 1e-5 off."""
    d = np.asarray(decays).reshape(-1, *(1,) * (old.ndim - 1))
    return jnp.asarray(d, jnp.float32) * old + jnp.asarray(1.0 - d, jnp.float32) * new


def _inverse_root(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`rsqrt(x)`; derivative 0 where x is so small (gradients of exactly 0) that the true one overflows."""
    tiny = x < 1e-24
    return jnp.where(tiny, jax.lax.rsqrt(jax.lax.stop_gradient(x)), jax.lax.rsqrt(jnp.where(tiny, 1.0, x)))
