"""What estimates of the distance to the solution share."""

import jax.numpy as jnp
from jaxtyping import Array, Float


NO_LIMIT = 1e30
"""A growth rate that limits nothing. (Infinity would make the derivative of `estimate * growth_rate` NaN.)"""


def raised(estimate: Float[Array, ""], candidate: Float[Array, ""], growth_rate: float) -> Float[Array, ""]:
    """`max(estimate, min(candidate, estimate * growth_rate))`: estimates never fall."""
    return jnp.maximum(estimate, jnp.minimum(candidate, estimate * growth_rate))
