"""Attention that tasks share (Vaswani et al. 2017, arXiv 1706.03762, equation 1)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


# Stands for minus infinity in a softmax, without its not-a-numbers where a row has nothing to look at.
_NEVER = -1e9


def attend(
    q: Float[Array, "rows queries width"],
    k: Float[Array, "rows keys width"],
    v: Float[Array, "rows keys width"],
    heads: int,
    allowed: Bool[Array, "#rows #heads #queries keys"] | None = None,
) -> Float[Array, "rows queries width"]:
    """What every query reads: `softmax(q k / sqrt(features)) v` by each head, features side by side.

    Args:
      q: queries; every head has `width / heads` features, one head after the other.
      k: keys.
      v: values.
      heads: number of heads, a divisor of the width.
      allowed: keys that a query may look at; None for all.
    """
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    scores = jnp.einsum("rqhf,rkhf->rhqk", q, k) * (1 / math.sqrt(q.shape[-1]))
    if allowed is not None:
        scores = jnp.where(allowed, scores, _NEVER)
    mixed = jnp.einsum("rhqk,rkhf->rqhf", jax.nn.softmax(scores, axis=-1), v)
    return mixed.reshape(*mixed.shape[:2], -1)


def self_attend(
    qkv: Float[Array, "rows tokens three_widths"],
    heads: int,
    allowed: Bool[Array, "#rows #heads #tokens tokens"] | None = None,
) -> Float[Array, "rows tokens width"]:
    """`attend` of tokens to each other, whose queries, keys and values lie side by side."""
    q, k, v = jnp.split(qkv, 3, axis=-1)
    return attend(q, k, v, heads, allowed)


def causal(length: int) -> Bool[Array, "1 1 length length"]:
    """Every token may look at itself and at those before it."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]
