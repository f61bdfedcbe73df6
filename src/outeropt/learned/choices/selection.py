"""Weights of the members of a pool from a network's scores: all of them a little, or one of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import ConfigError, OuteroptError


SELECTIONS = ("soft", "gumbel", "hard")

Scores = Float[Array, "members coordinates"]


def select(scores: Scores, selection: str, hardness: float, key: PRNGKeyArray | None) -> Scores:
    """Weights that sum to 1 over the members.

    `"soft"` is `softmax`. `"gumbel"` is a softmax of `hardness (scores + noise)` with standard Gumbel noise:
    the harder, the nearer is it to a draw of one member from the softmax of the scores (Jang, Gu and Poole,
    "Categorical reparameterization with Gumbel-softmax", 2016, arXiv 1611.01144), and it has derivatives.
    `"hard"` is the member of the highest score alone, which has none.

    Args:
      scores: of each member for each coordinate.
      selection: one of `SELECTIONS`.
      hardness: inverse temperature of `"gumbel"`.
      key: randomness for `"gumbel"`.

    Raises:
      OuteroptError: `"gumbel"` without a key.
    """
    if selection == "hard":
        return jax.nn.one_hot(jnp.argmax(scores, axis=0), scores.shape[0], dtype=scores.dtype, axis=0)
    if selection == "gumbel":
        if key is None:
            raise OuteroptError(
                'selection="gumbel" draws noise and needs `key`, which was not given; call update(grads, '
                'state, params, key=...), or use the optimizer with_settings(selection="hard").'
            )
        return jax.nn.softmax(hardness * (scores + jax.random.gumbel(key, scores.shape)), axis=0)
    return softmax(scores)


def softmax(scores: Scores) -> Scores:
    """`exp(z_j) / (sum_k exp(z_k) + 1e-10)`, as published, without overflow."""
    # Shifted only where the largest exponential is above 1, so that the small number, shifted too, is none.
    shift = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=0, keepdims=True), 0.0))
    raised = jnp.exp(scores - jnp.broadcast_to(shift, scores.shape))
    total = jnp.sum(raised, axis=0, keepdims=True) + 1e-10 * jnp.exp(-shift)
    return raised / jnp.broadcast_to(total, scores.shape)


def check_selection(selection: str, hardness: float) -> tuple[str, float]:
    """The two settings of `select`.

    Raises:
      ConfigError: no such selection, or a hardness that is not positive.
    """
    if selection not in SELECTIONS:
        raise ConfigError(f"There is no selection = {selection!r}; give {', '.join(SELECTIONS)}.")
    if not hardness > 0:
        raise ConfigError(f"hardness must be above 0, not {hardness}.")
    return selection, float(hardness)
