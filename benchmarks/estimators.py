"""Bias, variance and cost of every estimator of the outer gradient, at equal inner steps.

    python benchmarks/estimators.py              # both lengths; prints Markdown tables
    python benchmarks/estimators.py --length 100

The problem: SGD with momentum on a noisy quadratic in 16 dimensions, with one learning rate for each
dimension: 17 meta-parameters, whose outer gradient is known from backpropagation through very many
trajectories. Every estimate may take 2000 inner steps, in truncations of 10 or in whole trajectories. Theta
stays as it is; nothing is measured before the particles of a truncated estimator are spread over their
trajectories.
"""

import argparse
import functools
import platform
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from outeropt.metatraining import estimators
from outeropt.metatraining.estimators.antithetic import Antithetic
from outeropt.metatraining.estimators.whole import Whole
from outeropt.metatraining.lengths import Constant
from outeropt.metatraining.system import Outcome, System


DIMENSIONS = 16
STEPS = 2000
TRUNCATION = 10
STD = 0.03
REPEATS = 256
KEY = jax.random.key(0)


class Theta(eqx.Module):
    """Logarithms of the learning rates and of 1 - momentum."""

    log_rates: Float[Array, " dimensions"]
    log_friction: Float[Array, ""]


class NoisyQuadratic(System):
    """`sum(h p^2) / (2 sum(h))` by SGD with momentum, whose gradients carry normal noise."""

    def draw(self, key):
        return jnp.logspace(-2.0, 0.0, DIMENSIONS) * jnp.exp(0.2 * jax.random.normal(key, (DIMENSIONS,)))

    def init(self, theta, setup, length, key):
        return jax.random.normal(key, (DIMENSIONS,)), jnp.zeros(DIMENSIONS)

    def step(self, theta, setup, state, step, key):
        p, momentum = state
        loss = 0.5 * jnp.sum(setup * jnp.square(p)) / jnp.sum(setup)
        grad = setup * p + 0.1 * jnp.sqrt(setup) * jax.random.normal(key, p.shape)
        momentum = (1.0 - jnp.exp(theta.log_friction)) * momentum + grad
        return (p - jnp.exp(theta.log_rates) * momentum, momentum), Outcome(loss)


THETA = Theta(jnp.full(DIMENSIONS, jnp.log(0.05)), jnp.log(jnp.float32(0.3)))


def flat(tree):
    """One vector of all leaves."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def exact(length, batches=64):
    """The gradient, by backpropagation through whole trajectories, and its standard error."""
    estimator = estimators.FullBackprop(particles=512, length=length)

    def one(outer):
        return flat(estimator.estimate(NoisyQuadratic(), THETA, jnp.arange(512), KEY, outer)[0].grad)

    grads = np.asarray(jax.jit(lambda n: jax.lax.map(one, n))(jnp.arange(batches)), np.float64)
    return grads.mean(0), np.linalg.norm(grads.std(0) / batches**0.5)


def contestants(length):
    """Each estimator with as many particles as its inner steps allow: name, estimator, what a step costs."""
    rows, pairs = STEPS // TRUNCATION, STEPS // TRUNCATION // 2
    whole = STEPS // length
    common = {"truncation": TRUNCATION, "lengths": Constant(length), "random_offset": length}
    whole_es = estimators.FullES(particles=max(whole // 2, 1), std=STD, lengths=Constant(length))
    return [
        ("`FullBackprop`", estimators.FullBackprop(particles=whole, length=length), "1 + backward"),
        ("`Backprop`", estimators.Backprop(particles=rows, **common), "1 + backward"),
        ("`FullES`", whole_es, "1"),
        ("`TruncatedES`", estimators.TruncatedES(particles=pairs, std=STD, **common), "1"),
        ("`PES`", estimators.PES(particles=pairs, std=STD, **common), "1"),
        ("`ESSingle`", estimators.ESSingle(particles=pairs, std=STD, **common), "1"),
        ("`ForwardMode`, 1 tangent", estimators.ForwardMode(particles=rows, **common), "1 + 1 tangent"),
        (
            "`ForwardMode`, all tangents",
            estimators.ForwardMode(particles=rows, tangents="all", **common),
            f"1 + {DIMENSIONS + 1} tangents",
        ),
    ]


def sample(estimator, length):
    """Estimates `[repeats, successive, theta]`, after every particle's first trajectory."""
    system, count = NoisyQuadratic(), length // TRUNCATION

    @jax.jit
    def run(keys):
        def one(key):
            def body(state, outer):
                estimate, state = estimator.estimate(system, THETA, state, key, outer)
                return state, flat(estimate.grad)

            # Twice the length: one until particles are spread, one to be measured over a whole trajectory.
            state = estimator.init(system, THETA, key, 0)
            return jax.lax.scan(body, state, jnp.arange(2 * count))[1][count:]

        return jax.lax.map(one, keys)

    return np.asarray(run(jax.random.split(KEY, REPEATS)), np.float64)


def milliseconds(estimator, calls=200):
    """The shortest time of one compiled estimate, which other work on the machine disturbs least."""
    system = NoisyQuadratic()
    run = eqx.filter_jit(functools.partial(estimator.estimate, system, THETA))
    state, seconds = estimator.init(system, THETA, KEY, 0), []
    for outer in range(calls):
        began = time.perf_counter()
        estimate, state = run(state, KEY, jnp.int32(outer))
        jax.block_until_ready((estimate, state))
        seconds.append(time.perf_counter() - began)
    return 1e3 * min(seconds)


def table(length):
    """The rows of one length, as Markdown."""
    want, error = exact(length)
    size = np.linalg.norm(want)
    lines = [
        f"Trajectories of {length} steps ({length // TRUNCATION} truncations). The reference is known to "
        f"{100 * error / size:.2g} %.",
        "",
        "| estimator | particles | inner steps | cost of a step | bias | noise | cosine | ms per estimate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, estimator, cost in contestants(length):
        grads = sample(estimator, length)
        means = grads.mean(1)
        bias = np.linalg.norm(means.mean(0) - want) / size
        unsure = np.linalg.norm(means.std(0) / REPEATS**0.5) / size
        every = grads.reshape(-1, grads.shape[-1])
        noise = np.sqrt(np.mean(np.sum(np.square(every - every.mean(0)), axis=1))) / size
        cosine = np.mean(every @ want / np.linalg.norm(every, axis=1) / size)
        per = 2 if isinstance(estimator, Antithetic) else 1
        steps = per * estimator.particles * (length if isinstance(estimator, Whole) else TRUNCATION)
        shown = f"{estimator.particles} pairs" if per == 2 else f"{estimator.particles}"
        lines.append(
            f"| {name} | {shown} | {steps} | {cost} | {100 * bias:.1f} ± {100 * unsure:.1f} % "
            f"| {noise:.2g} | {cosine:.2f} | {milliseconds(estimator):.1f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--length", type=int, nargs="*", default=[100, 500], help="multiples of 10, up to 1000"
    )
    for length in parser.parse_args().length:
        print(table(length), flush=True)
        print()
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {jax.devices()[0].device_kind}, jax {jax.__version__}")


if __name__ == "__main__":
    main()
