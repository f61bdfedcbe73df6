"""What AdafacMLP and MLPNominal keep of a tensor's gradients, and the 28 features they make of it."""

from typing import NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from outeropt.learned.features import Factored, accumulate, learned_decays, product


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
    def zeros(cls, shape: tuple[int, ...]) -> Self:
        """Before the first gradient."""
        momentum, rms = (jnp.zeros((len(decays), *shape), jnp.float32) for decays in (MOMENTUM, RMS))
        return cls(momentum, rms, Factored.zeros(len(FACTORED), shape))

    def updated(self, decays: Decays, grad: Float[Array, "*shape"]) -> "Moments":
        """With one more gradient."""
        return Moments(
            accumulate(learned_decays(MOMENTUM, decays.momentum), self.momentum, grad),
            accumulate(learned_decays(RMS, decays.rms), self.rms, jnp.square(grad)),
            self.factored.updated(learned_decays(FACTORED, decays.factored), grad),
        )

    def sources(self, grad: Float[Array, "*shape"], params: Float[Array, "*shape"]) -> "Sources":
        """What the features are made of; the moments must have taken in `grad` already."""
        row, col = self.factored.spread(grad.shape)
        row_factor, col_factor = self.factored.factors(grad.shape)
        # Below rank 2 the momenta are divided by sqrt(v + 1e-6), the gradient by sqrt(v + 1e-9).
        damped = jax.lax.rsqrt(row + 1e-6) if grad.ndim < 2 else row_factor
        return Sources(
            grad[None], params[None], self.momentum, self.rms, row, col, row_factor, col_factor, damped
        )


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
