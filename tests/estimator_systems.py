"""Systems that the tests of estimators unroll: a quadratic task, a linear policy, and a recorded replay."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from outeropt.metatraining.lengths import Lengths
from outeropt.metatraining.system import Outcome, System


class Descent(System):
    """SGD with momentum on `0.5 sum(h p^2)` in R^3; theta is log learning rate and log(1 - momentum).

    Attributes:
      spread: h is its mean times `exp(spread * normal)`; 0 makes the system deterministic.
      broken: share of trajectories whose losses are NaN.
      horizon: the loss counts only from this step on.
    """

    spread: Float[Array, ""] = eqx.field(converter=jnp.float32, default=0.0)
    broken: Float[Array, ""] = eqx.field(converter=jnp.float32, default=0.0)
    horizon: Int[Array, ""] = eqx.field(converter=jnp.int32, default=0)

    def draw(self, key):
        h_key, broken_key = jax.random.split(key)
        h = jnp.array([0.3, 1.0, 2.0]) * jnp.exp(self.spread * jax.random.normal(h_key, (3,)))
        return h, jax.random.uniform(broken_key) < self.broken

    def init(self, theta, setup, length, key):
        return jnp.array([1.5, -1.0, 0.5]), jnp.zeros(3)

    def step(self, theta, setup, state, step, key):
        (h, broken), (p, momentum) = setup, state
        loss = 0.5 * jnp.sum(h * jnp.square(p))
        momentum = (1.0 - jnp.exp(theta["log_friction"])) * momentum + h * p
        p = p - jnp.exp(theta["log_lr"]) * momentum
        return (p, momentum), Outcome(jnp.where(broken, jnp.nan, loss), step >= self.horizon)


DESCENT_THETA = {"log_lr": jnp.log(jnp.float32(0.05)), "log_friction": jnp.log(jnp.float32(0.4))}


class Policy(System):
    """A noisy linear system under linear feedback, `x' = A x + b (theta . x) + noise`: nothing is optimized.

    The state begins where theta says, too.
    """

    def draw(self, key):
        return 0.1 * jax.random.uniform(key, (2,))

    def init(self, theta, setup, length, key):
        return theta.begin + setup + 0.1 * jax.random.uniform(key, (2,)), jnp.int32(0)

    def step(self, theta, setup, state, step, key):
        x, count = state
        control = jnp.dot(theta.gain, x)
        loss = jnp.sum(jnp.square(x)) + 0.1 * jnp.square(control)
        drift = jnp.array([[1.0, 0.2], [-0.1, 0.9]]) @ x + jnp.array([0.0, 0.5]) * control
        return (drift + 0.05 * jax.random.uniform(key, (2,), minval=-1.0), count + 1), Outcome(loss)


class PolicyTheta(eqx.Module):
    """Meta-parameters with a static part."""

    gain: Float[Array, " 2"]
    begin: Float[Array, " 2"]
    name: str = eqx.field(static=True, default="policy")


POLICY_THETA = PolicyTheta(jnp.array([-0.2, -0.4]), jnp.array([1.0, 0.5]))


class Influence(System):
    """Influence balancing (Tallec and Ollivier 2017, arXiv 1705.08209): theta acts at first against its end.

    `x_i <- (x_i + x_{i+1}) / 2 + s_i theta` with s = (1, -1, -1, -1) and loss `(x_0 - 1)^2 / 2`: theta pushes
    x_0 up at once and down in the long run. The loss is quadratic in theta, so that smoothing leaves its
    gradient as it is.
    """

    def draw(self, key):
        return jnp.zeros(())

    def init(self, theta, setup, length, key):
        return jnp.ones(4)

    def step(self, theta, setup, state, step, key):
        ahead = jnp.concatenate([state[1:], jnp.zeros(1)])
        moved = 0.5 * (state + ahead) + jnp.array([1.0, -1.0, -1.0, -1.0]) * theta
        return moved, Outcome(0.5 * jnp.square(moved[0] - 1.0))


class Batches(System):
    """Losses on minibatches that theta does not choose.

    Attributes:
      data: rows from which each step takes `batch`.
    """

    data: Float[Array, "rows features"]
    batch: int = eqx.field(static=True)

    def draw(self, key):
        return jax.random.normal(key, ())

    def init(self, theta, setup, length, key):
        return jax.random.normal(key, ())

    def step(self, theta, setup, state, step, key):
        rows = self.data[jax.random.randint(key, (self.batch,), 0, len(self.data))]
        return state + setup, Outcome(jnp.sum(jnp.mean(rows, axis=0)) + state + 0.0 * theta)


class Recorded(Lengths):
    """One recorded length for each outer step."""

    table: Int[Array, " outer"]

    def draw(self, key, outer_step):
        return self.table[outer_step]


class ReplayState(eqx.Module):
    """An inner optimizer's state, steps in this problem, whether it is done, and rows of the record used."""

    inner: Any
    iteration: Int[Array, ""]
    done: Array
    row: Int[Array, ""]


class Replay(System):
    """What learned_optimization ran: `0.5 sum(h (p - c)^2)`, started anew in the middle of an unroll.

    A problem that is done burns one step, which does not count; `is_done` is said one step before.

    Attributes:
      optimizer: `init(p)` and `update(theta, state, p, grad)`, which gives the next p and state.
      start: initial p.
      center: c.
      keys: the key with which each particle draws its setup.
      h: recorded, for each particle and row (step since the record began).
      offset: steps with which each particle's first problem begins.
      length: inner steps of a problem.
      after: whether the loss is the one after the update, as a recomputed last loss is.
    """

    optimizer: tuple[Callable, Callable] = eqx.field(static=True)
    start: Float[Array, " 3"]
    center: Float[Array, " 3"]
    keys: Key[Array, " particles"]
    h: Float[Array, "particles rows 3"]
    offset: Int[Array, " particles"]
    length: int = eqx.field(static=True)
    after: bool = eqx.field(static=True, default=False)

    def draw(self, key):
        same = jnp.all(jax.random.key_data(self.keys) == jnp.expand_dims(jax.random.key_data(key), 0), axis=1)
        which = jnp.argmax(same)
        return self.h[which], self.offset[which]

    def init(self, theta, setup, length, key):
        inner = self.start, self.optimizer[0](self.start)
        return ReplayState(inner, setup[1], jnp.bool_(False), jnp.int32(0))

    def step(self, theta, setup, state, step, key):
        h = setup[0][state.row]
        p, opt = state.inner

        def loss(p):
            return 0.5 * jnp.sum(h * jnp.square(p - self.center))

        moved, moved_opt = self.optimizer[1](theta, opt, p, h * (p - self.center))
        begun = self.start, self.optimizer[0](self.start)
        inner = jax.tree.map(lambda a, b: jnp.where(state.done, a, b), begun, (moved, moved_opt))
        iteration = jnp.where(state.done, 0, state.iteration + 1)
        done = ~state.done & (iteration >= self.length)
        value = jnp.where(state.done, 0.0, loss(moved) if self.after else loss(p))
        return ReplayState(inner, iteration, done, state.row + 1), Outcome(value, ~state.done, done)


def momentum_init(p):
    return jnp.zeros_like(p)


def momentum_update(theta, momentum, p, grad):
    """SGD with momentum: log learning rate and log(1 - decay) are learned."""
    momentum = (1.0 - jnp.exp(theta["one_minus_momentum"])) * momentum + grad
    return p - jnp.exp(theta["log_lr"]) * momentum, momentum


DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
TIMES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)


def mlp_init(p):
    return jnp.zeros((*p.shape, len(DECAYS))), jnp.int32(0)


def mlp_update(theta, state, p, grad, step_mult=0.05, exp_mult=0.01):
    """A network for each parameter, on gradient, parameter, six momenta (normalised) and the time."""
    momenta, iteration = state
    decays = jnp.broadcast_to(jnp.array(DECAYS), momenta.shape)
    momenta = decays * momenta + (1.0 - decays) * jnp.expand_dims(grad, 1)
    features = jnp.concatenate([grad[:, None], p[:, None], momenta], axis=1)
    square = jnp.mean(jnp.square(features), axis=0, keepdims=True)
    features = features * jnp.broadcast_to(jax.lax.rsqrt(1e-5 + square), features.shape)
    time = jnp.tanh(iteration.astype(jnp.float32) / jnp.array(TIMES, jnp.float32) - 1.0)
    inputs = jnp.concatenate([features, jnp.broadcast_to(time, (p.size, time.size))], axis=1)
    layers = [(theta[f"mlp/~/linear_{i}/w"], theta[f"mlp/~/linear_{i}/b"]) for i in range(2)]
    hidden = jax.nn.relu(inputs @ layers[0][0] + jnp.expand_dims(layers[0][1], 0))
    out = hidden @ layers[1][0] + jnp.expand_dims(layers[1][1], 0)
    step = step_mult * out[:, 0] * jnp.exp(exp_mult * out[:, 1])
    return p - step, (momenta, iteration + 1)


OPTIMIZERS = {"sgdm": (momentum_init, momentum_update), "mlp": (mlp_init, mlp_update)}
