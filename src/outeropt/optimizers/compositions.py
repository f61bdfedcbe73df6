"""Optax transformations for the table, where optax has the parts but not quite the optimizer."""

import jax
import jax.numpy as jnp
import optax

from outeropt.optimizers.optax_optimizer import static_arguments


def radam(
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
) -> optax.GradientTransformation:
    """Rectified Adam with the updates of `optax.radam`, and derivatives that are numbers.

    optax takes the root of the rectification term before it knows that there is one, which makes every
    hypergradient NaN. Equations of Liu et al., 2019, arXiv 1908.03265, algorithm 2.

    Args:
      learning_rate: step size.
      b1: decay of the mean.
      b2: decay of the square.
      eps: added to the root of the square.
      eps_root: added to the square, inside its root.
      threshold: length of the approximated average from which on the step is rectified.
    """

    def init(params):
        mean, square = optax.tree.zeros_like(params), optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mean, square)

    def update(updates, state, params=None):
        del params
        mean = optax.tree.update_moment(updates, state.mu, b1, 1)
        square = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        longest = 2.0 / (1.0 - b2) - 1.0
        length = jnp.asarray(longest - 2 * count * b2**count / (1 - b2**count))
        known = length >= threshold
        term = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
        rectifier = jnp.sqrt(jnp.where(known, term, 1.0))

        def one(m, v):
            return jnp.where(known, rectifier.astype(m.dtype) * m / (jnp.sqrt(v + eps_root) + eps), m)

        corrected = optax.tree.bias_correction(mean, b1, count), optax.tree.bias_correction(square, b2, count)
        return jax.tree.map(one, *corrected), optax.ScaleByAdamState(count, mean, square)

    return optax.chain(
        optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate)
    )


@static_arguments("b2")
def sm3(learning_rate: float, momentum: float = 0.9, b2: float = 1.0) -> optax.GradientTransformation:
    """SM3 for leaves of any rank: optax's needs at least one axis, so scalars are given one.

    Args:
      learning_rate: step size.
      momentum: decay of the momentum.
      b2: decay of the second moments; 1 adds them up.
    """
    inner = optax.chain(optax.scale_by_sm3(b1=momentum, b2=b2), optax.scale_by_learning_rate(learning_rate))

    def init(params):
        return inner.init(jax.tree.map(jnp.atleast_1d, params))

    def update(updates, state, params=None):
        del params
        shaped, state = inner.update(jax.tree.map(jnp.atleast_1d, updates), state)
        return jax.tree.map(lambda new, old: new.reshape(old.shape), shaped, updates), state

    return optax.GradientTransformation(init, update)


@static_arguments("factor", "rtol", "atol")
def reduce_on_plateau(
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    factor: float = 0.5,
    patience: int = 5,
    cooldown: int = 0,
    accumulation_size: int = 50,
    min_scale: float = 1e-4,
    rtol: float = 1e-4,
    atol: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Adam with a learning rate that falls when the training loss no longer does.

    Args:
      learning_rate: Adam's first step size.
      b1: Adam's decay of the mean.
      b2: Adam's decay of the square.
      eps: Adam's epsilon.
      factor: what the learning rate is multiplied by, in (0, 1).
      patience: mean losses without improvement before that.
      cooldown: mean losses to wait after it.
      accumulation_size: minibatch losses in one mean.
      min_scale: smallest fraction of the learning rate.
      rtol: relative improvement that counts.
      atol: absolute improvement that counts.
    """
    plateau = optax.contrib.reduce_on_plateau(
        factor, patience, rtol, atol, cooldown, accumulation_size, min_scale
    )
    return optax.chain(optax.adam(learning_rate, b1=b1, b2=b2, eps=eps), plateau)
