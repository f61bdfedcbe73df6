"""Schedule-free methods: gradients taken between the iterate and its average, which is the answer."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from optax.contrib import ScheduleFreeState

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import quotient, root, wide_type, widen


def averaging_move(
    params: Params, z: Params, moves: Params, share: Float[Array, ""], b1: Float[Array, ""] | float
) -> Params:
    """How the training point moves when the iterate does and enters the average.

    With `y = b1 x + (1 - b1) z`, `z <- z + u` and `x <- (1 - c) x + c z`, the point `y` moves by
    `c (z - y) + (1 - b1 (1 - c)) u`, with `z` from before: `x` need not be kept.

    Args:
      params: `y`, where gradients are taken.
      z: the iterate.
      moves: `u`, its move.
      share: `c`, its part in the average.
      b1: how near to the average gradients are taken.
    """
    ahead = 1.0 - b1 * (1.0 - share)
    return jax.tree.map(lambda y, z, u: share * (z - y) + ahead * u, params, z, moves)


def schedule_free_sgd(
    learning_rate: float = 1.0,
    warmup_steps: float = 0.0,
    b1: float = 0.9,
    weight_decay: float = 0.0,
    weight_lr_power: float = 2.0,
    r: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free SGD; the equations are those of `schedule_free_adamw`, with `g` in place of `w g`.

    Args:
      learning_rate: step size.
      warmup_steps: over which it rises linearly.
      b1: how near to the average gradients are taken, in (0, 1).
      weight_decay: L2 penalty at `y`.
      weight_lr_power: power of the largest step size so far in the average's weights.
      r: power of the step in the average's weights.
    """

    def step_size(count):
        return learning_rate * _warm(count, warmup_steps)

    return _schedule_free(optax.identity(), step_size, b1, weight_decay, weight_lr_power, r)


def schedule_free_adamw(
    learning_rate: float = 0.0025,
    warmup_steps: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_lr_power: float = 2.0,
    r: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free AdamW.

    At step `t` (from 1), with `g` the gradient at `y`, and `w` one over Adam's corrected root mean square
    plus `eps`:

        l = learning_rate * min(1, t / warmup_steps)             z <- z - l (w g + weight_decay y)
        weight = t^r max(l so far)^weight_lr_power               c = weight / sum of weights so far
        x <- (1 - c) x + c z                                     y <- b1 x + (1 - b1) z

    Defazio et al., "The Road Less Scheduled", 2024, arXiv 2405.15682, algorithm 1. Training goes on at `y`;
    `eval_params` gives `x`. Without warm-up and with `r = 0` these are the updates of
    `optax.contrib.schedule_free_adamw`; its warm-up starts at a step size of 0, that of the authors at the
    first fraction.

    Args:
      learning_rate: step size.
      warmup_steps: over which it rises linearly.
      b1: how near to the average gradients are taken, in (0, 1).
      b2: decay of the square.
      eps: added to the root of the square.
      weight_decay: decoupled, at `y`, multiplied by the step size.
      weight_lr_power: power of the largest step size so far in the average's weights.
      r: power of the step in the average's weights.
    """

    def step_size(count):
        return learning_rate * _warm(count, warmup_steps)

    adam = optax.scale_by_adam(b1=0.0, b2=b2, eps=eps)
    return _schedule_free(adam, step_size, b1, weight_decay, weight_lr_power, r)


def schedule_free_radam(
    learning_rate: float = 0.0025,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_lr_power: float = 2.0,
    r: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free AdamW whose step size is multiplied by RAdam's rectification instead of warming up.

    As long as the rectification is not defined (five steps, for `b2 = 0.999`), nothing moves, as is the
    authors' default. Defazio et al., "The Road Less Scheduled", 2024, arXiv 2405.15682; Liu et al., "On the
    Variance of the Adaptive Learning Rate and Beyond", 2019, arXiv 1908.03265.

    Args:
      learning_rate: step size.
      b1: how near to the average gradients are taken, in (0, 1).
      b2: decay of the square.
      eps: added to the root of the square.
      weight_decay: decoupled, at `y`, multiplied by the step size.
      weight_lr_power: power of the largest step size so far in the average's weights.
      r: power of the step in the average's weights.
    """

    def step_size(count):
        longest = 2.0 / (1.0 - b2) - 1.0
        length = longest - 2.0 * count * b2**count / (1.0 - b2**count)
        known = length > 4.0
        term = quotient((length - 4.0) * (length - 2.0) * longest, (longest - 4.0) * (longest - 2.0) * length)
        return learning_rate * root(jnp.where(known, term, 0.0))

    adam = optax.scale_by_adam(b1=0.0, b2=b2, eps=eps)
    return _schedule_free(adam, step_size, b1, weight_decay, weight_lr_power, r)


def _warm(count: Float[Array, ""], warmup_steps: float) -> Float[Array, ""]:
    return jnp.minimum(1.0, count / jnp.maximum(warmup_steps, 1.0))


def _schedule_free(direction, step_size, b1, weight_decay, weight_lr_power, r):
    """A schedule-free method from what it makes of gradients, and its step size at each count from 1 on."""

    def init(params: Params) -> ScheduleFreeState:
        zero = jnp.zeros((), wide_type(params))
        return ScheduleFreeState(
            b1=zero + b1,
            weight_sum=zero,
            step_count=jnp.zeros((), jnp.int32),
            max_lr=zero,
            base_optimizer_state=direction.init(params),
            z=jax.tree.map(jnp.array, params),
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        points, z, step_count = widen(params), widen(state.z), state.step_count + 1
        count = step_count.astype(wide_type(params))
        directions, base = direction.update(widen(updates), state.base_optimizer_state, points)
        step = step_size(count)
        largest = jnp.maximum(state.max_lr, step)
        weight = count**r * largest**weight_lr_power
        weight_sum = state.weight_sum + weight
        moves = jax.tree.map(lambda g, y: -step * (g + weight_decay * y), directions, points)
        return averaging_move(points, z, moves, quotient(weight, weight_sum), b1), ScheduleFreeState(
            b1=jnp.asarray(b1, count.dtype),
            weight_sum=weight_sum,
            step_count=step_count,
            max_lr=largest,
            base_optimizer_state=base,
            z=jax.tree.map(jnp.add, z, moves),
        )

    return optax.GradientTransformationExtraArgs(init, update)
