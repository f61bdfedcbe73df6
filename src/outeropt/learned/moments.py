"""What AdafacMLP and MLPNominal keep of a tensor's gradients, and the 28 features they make of it."""

from typing import NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from outeropt import tree
from outeropt.learned.features import (
    Factored,
    as_channels,
    average,
    channelwise,
    learned_decays,
    product,
)


# Where the learned decays start.
MOMENTUM = (0.9, 0.99, 0.999)
RMS = (0.999,)
FACTORED = (0.9, 0.99, 0.999)

FEATURES = 28


class Decays(eqx.Module):
    """Meta-learned decays of the accumulators, as `features.learned_decays` reads them; zeros at first."""

    momentum: Float[Array, " 3"] = eqx.field(default_factory=lambda: jnp.zeros(3, jnp.float32))
    rms: Float[Array, " 1"] = eqx.field(default_factory=lambda: jnp.zeros(1, jnp.float32))
    factored: Float[Array, " 3"] = eqx.field(default_factory=lambda: jnp.zeros(3, jnp.float32))

    def of_averages(self, rank: int) -> "Averages":
        """The decays, `[channels]` with an axis of length 1 for each of a tensor's `rank` axes."""
        momentum, rms = learned_decays(MOMENTUM, self.momentum), learned_decays(RMS, self.rms)
        return Averages(as_channels(momentum, rank), as_channels(rms, rank))


class Moments(eqx.Module):
    """Accumulators of one tensor.

    Attributes:
      momentum: averages of the gradient.
      rms: average of its square.
      factored: averages of its square over rows and over columns.
    """

    momentum: Float[Array, "3 *shape"]
    rms: Float[Array, "1 *shape"]
    factored: Factored

    @classmethod
    def zeros(cls, param: Float[Array, "*shape"]) -> Self:
        """Those of a tensor before the first gradient."""
        momentum, rms = (
            tree.zeros_beside(param, len(decays), dtype=jnp.float32) for decays in (MOMENTUM, RMS)
        )
        return cls(momentum, rms, Factored.zeros(len(FACTORED), param))

    @property
    def averages(self) -> "Averages":
        """The accumulators that look at each parameter by itself."""
        return Averages(self.momentum, self.rms)

    def updated(self, decays: Decays, grad: Float[Array, "*shape"]) -> "Moments":
        """With one more gradient."""
        averages = averaged(self.averages, decays.of_averages(grad.ndim), grad[None])
        return Moments(*averages, self.factored_updated(decays, grad))

    def factored_updated(self, decays: Decays, grad: Float[Array, "*shape"]) -> Factored:
        """The factored accumulators with one more gradient."""
        return self.factored.updated(learned_decays(FACTORED, decays.factored), grad)

    def sources(self, grad: Float[Array, "*shape"], params: Float[Array, "*shape"]) -> "Sources":
        """What the features are made of; the moments must have taken in `grad` already."""
        return _joined(self.averages, beside(self.factored, grad, params))


class Averages(NamedTuple):
    """Averages of the gradient and of its square, or their decays: arrays or tuples of channels."""

    momentum: Array
    rms: Array


class Beside(NamedTuple):
    """The sources other than averages, as in `Sources`."""

    grad: Array
    params: Array
    row: Array
    col: Array
    row_factor: Array
    col_factor: Array
    momentum_factor: Array


class Sources(NamedTuple):
    """Arrays `[channels, *shape]`, with length 1 along axes on which they do not depend.

    Features may also be made from tuples of the channels, as kernels do.
    """

    grad: Array
    params: Array
    momentum: Array
    rms: Array
    row: Array
    col: Array
    row_factor: Array
    col_factor: Array
    momentum_factor: Array


def beside(factored: Factored, grad: Float[Array, "*shape"], params: Float[Array, "*shape"]) -> Beside:
    """The sources other than averages; the factored accumulators must have taken in `grad` already."""
    row, col = factored.spread(grad.shape)
    row_factor, col_factor = factored.factors(grad.shape)
    # Below rank 2 the momenta are divided by sqrt(v + 1e-6), the gradient by sqrt(v + 1e-9).
    damped = jax.lax.rsqrt(row + 1e-6) if grad.ndim < 2 else row_factor
    return Beside(grad[None], params[None], row, col, row_factor, col_factor, damped)


def averaged(old: Averages, decays: Averages, grad: Array) -> Averages:
    """The averages with one more gradient `[1, *shape]`."""
    square = channelwise(jnp.square, grad)
    return Averages(average(decays.momentum, old.momentum, grad), average(decays.rms, old.rms, square))


def look(old: Averages, given: tuple[Averages, Beside]) -> tuple[Sources, Averages]:
    """What the features are made of, and the next averages, from the last ones, their decays and the rest."""
    decays, rest = given
    new = averaged(old, decays, rest.grad)
    return _joined(new, rest), new


def _joined(averages: Averages, rest: Beside) -> Sources:
    return Sources(**averages._asdict(), **rest._asdict())


def moment_features(sources: Sources) -> list[Array]:
    """The 28 features of each parameter before normalisation, in the order of the published networks.

    Gradient; parameter; momenta (3); second moment; momenta over its root (3); one over its root; gradient
    preconditioned by the factored moments (3); their rows (3), columns (3), and one over the roots of both
    (6); momenta preconditioned like the gradient (3).
    """
    s = sources
    inverse, row, col = (
        jax.tree.map(lambda v, damping=damping: jax.lax.rsqrt(v + damping), x)
        for x, damping in ((s.rms, 1e-6), (s.row, 1e-8), (s.col, 1e-8))
    )
    groups = (
        s.grad,
        s.params,
        s.momentum,
        s.rms,
        product(s.momentum, inverse),
        inverse,
        product(s.grad, s.row_factor, s.col_factor),
        s.row,
        s.col,
        row,
        col,
        product(s.momentum, s.momentum_factor, s.col_factor),
    )
    return [group[i] for group in groups for i in range(len(group))]
