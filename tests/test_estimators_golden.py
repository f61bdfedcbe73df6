"""Estimates equal those of learned_optimization, given the same perturbations, problems and offsets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import estimator_systems as systems
import learned_golden
from outeropt.metatraining.estimators import PES, Backprop, FullES, TruncatedES, antithetic, base
from outeropt.metatraining.lengths import Endless


# Compilation is most of these tests' time.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

FILES = sorted(path.stem for path in (learned_golden.FOLDER / "estimators").glob("*.npz"))
OUTER_STEPS = 6
PARTICLES = 4
KEY = jax.random.key(0)


def close(got, want, message, scale=None):
    """Within 1e-5 of the largest entry."""
    got, want = np.asarray(got), np.asarray(want)
    scale = np.abs(want).max() if scale is None else scale
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale + 1e-12, err_msg=message)


class Case:
    """A golden file, and what it says about the estimator and the system."""

    def __init__(self, name):
        self.arrays, self.config = learned_golden.load(f"estimators/{name}")
        self.theta = jax.tree.map(jnp.asarray, learned_golden.below(self.arrays, "theta"))
        self.lengths = np.array([self.of(i, "mask").shape[0] for i in range(OUTER_STEPS)])
        self.side = "loss" if self.config["est"] == "TruncatedGrad" else "pos_loss"

    def of(self, outer, name):
        if name == "mask" and f"outer{outer}/mask" not in self.arrays:
            return np.ones_like(self.arrays[f"outer{outer}/{self.side}"], bool)
        return self.arrays[f"outer{outer}/{name}"]

    def below(self, outer, name):
        return learned_golden.below(self.arrays, f"outer{outer}/{name}")

    @property
    def settings(self):
        config = self.config
        given = {"particles": PARTICLES}
        if "std" in config:
            given["std"] = config["std"]
        if "clip_loss_diff" in config:
            given["clip"] = config["clip_loss_diff"]
        if "sign_delta_loss_scalar" in config:
            assert config["sign_delta_loss_scalar"] == 1.0
            given["shaping"] = "sign"
        return given

    def system(self, outers, rows):
        """The replay of the problems of some outer steps, which particles draw at the first of them."""
        h = np.concatenate([self.of(i, "task_param") for i in outers]).swapaxes(0, 1)
        table = np.zeros((PARTICLES, rows, 3), np.float32)
        table[:, : h.shape[1]] = h
        keys = jax.vmap(lambda key: base.start_keys(key)[1])(
            base.particle_keys(KEY, outers[0], base.numbers(PARTICLES))
        )
        begin = "start" if self.side == "loss" else "pos_start"
        return systems.Replay(
            optimizer=systems.OPTIMIZERS[self.config["learned_optimizer"]],
            start=jnp.asarray(self.arrays["task/p0"]),
            center=jnp.asarray(self.arrays["task/center"]),
            keys=keys,
            h=jnp.asarray(table),
            offset=jnp.asarray(self.of(outers[0], f"{begin}/inner_step")),
            length=self.config.get("total_length", 10**6),
            after=self.config.get("loss_type") == "last_recompute",
        )

    def noise(self, outer):
        """The recorded perturbations as standard normal directions."""
        if "std" not in self.config:
            return {}
        recorded = self.below(outer, "perturbation")
        return {k: jnp.asarray(v / np.float32(self.config["std"])) for k, v in recorded.items()}

    def check_estimate(self, outer, estimate):
        want = self.below(outer, "grad")
        # Terms of a mean may cancel, and rounding is relative to them.
        scale = max(max(np.abs(value).max() for value in want.values()), self.largest_term(outer))
        for name, value in want.items():
            close(estimate.grad[name], value, f"outer {outer}, {name}", scale)
        close(estimate.loss, self.of(outer, "mean_loss"), f"outer {outer}, mean loss")
        assert float(estimate.diagnostics["skipped"]) == 0

    def largest_term(self, outer):
        """The largest `x d / (2 s^2)` that a particle can have contributed."""
        if self.side == "loss":
            return 0.0
        d = np.abs(self.of(outer, "pos_loss") - self.of(outer, "neg_loss")).mean(axis=0).max()
        d = 1.0 if "sign_delta_loss_scalar" in self.config else d
        x = self.below(outer, "perturbation"), self.below(outer, "accumulator_after")
        x = max(np.abs(value).max() for leaves in x for value in leaves.values())
        return x * d / (2 * self.config["std"] ** 2)

    def check_outcomes(self, outer, seen):
        """Losses, masks and flags of every step, on each side."""
        recorded = ["loss"] if self.side == "loss" else ["pos_loss", "neg_loss"]
        for side, name in enumerate(recorded):
            want = self.of(outer, name)
            rows = slice(0, len(want))
            close(seen.loss[:, rows, side].T, want, f"outer {outer}, {name}")
            np.testing.assert_array_equal(seen.counts[:, rows, side].T, self.of(outer, "mask"))
            np.testing.assert_array_equal(seen.fresh[:, rows, side].T, self.of(outer, "is_done"))

    def check_accumulator(self, outer, when, state, std):
        for name, want in self.below(outer, f"accumulator_{when}").items():
            close(state.score[name] * jnp.square(std), want, f"outer {outer} {when}, {name}")


@pytest.fixture
def given(monkeypatch):
    """Whatever is put under "noise" is what estimators draw."""
    given = {}
    monkeypatch.setattr(antithetic, "perturbations", lambda keys, theta: given["noise"])
    return given


TRUNCATED = [name for name in FILES if not name.startswith("fulles")]


def test_nothing_recorded_is_left_out():
    assert len(FILES) == 19
    assert len(TRUNCATED) == 12


KINDS = {"TruncatedPES": PES, "TruncatedES": TruncatedES, "TruncatedGrad": Backprop}


@pytest.mark.parametrize("name", TRUNCATED)
def test_truncated_estimators(name, given):
    case = Case(name)
    truncation = int(case.lengths[0])
    estimator = KINDS[case.config["est"]](lengths=Endless(), truncation=truncation, **case.settings)
    system = case.system(range(OUTER_STEPS), truncation * OUTER_STEPS)
    pes = isinstance(estimator, PES)

    @quickly
    def step(state, noise, outer):
        given["noise"] = noise
        estimate, after = estimator.estimate(system, case.theta, state, KEY, outer)
        return estimate, after, outcomes(estimator, system, case.theta, state, noise, outer)

    state = estimator.init(system, case.theta, KEY, 0)
    resets = 0
    for outer in range(OUTER_STEPS):
        estimate, after, seen = step(state, case.noise(outer), outer)
        case.check_outcomes(outer, seen)
        case.check_estimate(outer, estimate)
        if pes:
            case.check_accumulator(outer, "before", state, estimator.std)
            case.check_accumulator(outer, "after", after, estimator.std)
        resets += int(np.sum(np.asarray(seen.fresh)))
        state = after
    assert (resets > 0) == ("noreset" not in name)


@pytest.mark.parametrize("name", [name for name in FILES if name not in TRUNCATED])
def test_whole_trajectories(name, given):
    case = Case(name)
    reductions = {"avg": "mean", "last": "last", "min": "min", "last_recompute": "last"}
    estimator = FullES(
        lengths=systems.Recorded(jnp.asarray(case.lengths)),
        reduction=reductions[case.config["loss_type"]],
        **case.settings,
    )

    @quickly
    def step(system, noise, outer):
        given["noise"] = noise
        state = estimator.init(system, case.theta, KEY, 0)
        estimate, _ = estimator.estimate(system, case.theta, state, KEY, outer)
        unrolled = TruncatedES(lengths=Endless(), truncation=int(case.lengths.max()), **case.settings)
        waiting = unrolled.init(system, case.theta, KEY, 0)
        return estimate, outcomes(unrolled, system, case.theta, waiting, noise, outer)

    for outer in range(OUTER_STEPS):
        system = case.system([outer], int(case.lengths.max()))
        estimate, seen = step(system, case.noise(outer), outer)
        case.check_estimate(outer, estimate)
        if not system.after:
            case.check_outcomes(outer, seen)


def outcomes(estimator, system, theta, state, noise, outer):
    """What the unroll of an estimate sees, with axes of particles, steps and sides."""
    trajectories = getattr(state, "trajectories", state)
    keys = base.particle_keys(KEY, outer, trajectories.number)
    if isinstance(estimator, Backprop):
        thetas = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (PARTICLES, *leaf.shape)), theta)
        begun = estimator.restarted(system, thetas, trajectories, keys, outer)
        _, seen = jax.vmap(lambda *one: estimator.unroll(system.step, *one))(thetas, begun, keys)
        return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 2), seen)
    thetas = antithetic.sides(theta, antithetic.scaled(noise, estimator.std))
    return estimator.advanced(system, thetas, trajectories, keys, outer)[1]
