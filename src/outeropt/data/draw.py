"""Random rows, drawn as cheaply as XLA allows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray


def rows(key: PRNGKeyArray, count: int, total: int) -> Int[Array, " count"]:
    """`count` numbers from 0 to `total - 1`, uniform and with replacement.

    The numbers of `jax.random.randint(key, (count,), 0, total)`, whose two draws of 32 bits are one here: on
    CPU each draw is a loop of its own, and small programs consist of little else.
    """
    high, low = jax.vmap(lambda half: jax.random.bits(half, (count,)))(jax.random.split(key))
    # 64 bits modulo the total, by (a b) mod n = (a mod n) (b mod n) mod n. Above 2^16, where that would not
    # fit into 32 bits, JAX leaves the high ones out.
    shift = jnp.uint32((2**16 % total) ** 2 % 2**32 % total)
    return ((high % total * shift + low % total) % total).astype(jnp.int32)
