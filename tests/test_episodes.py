"""Episodes: training again and again from fresh initial values, with what the optimizer learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import Store, optimizers, sweep, train
from outeropt._sweep import runner
from outeropt.errors import ConfigError
from outeropt.selftuning import MetaOpt
from outeropt.training import mask_diverged
from toys import regression


METAOPT = MetaOpt(optimizers.get("sgd", learning_rate=1e-3), optimizers.get("adam", learning_rate=3e-2))


def test_each_episode_starts_from_fresh_values_and_what_was_learned():
    run = train(regression(), METAOPT, steps=20, episodes=3, eval_every=10, key=jax.random.key(0))
    assert run.steps.tolist() == [0, 10, 20, 30, 40, 50, 60]
    ends = run.curves["train/loss"][jnp.array([2, 4, 6])]
    assert ends[0] > 1.5 * ends[1]
    assert run.state.opt.history.count == 20  # of the last episode
    learned = run.curves["optimizer/coefficients.sum"]
    assert learned[0] == 0 and np.all(learned[1:] < 0)


def test_an_optimizer_that_learns_nothing_repeats_itself():
    run = train(
        regression(), optimizers.get("adam"), steps=20, episodes=2, eval_every=20, key=jax.random.key(0)
    )
    assert int(run.state.opt[0].count) == 20
    once = train(regression(), optimizers.get("adam"), steps=20, eval_every=20, key=jax.random.key(0))
    np.testing.assert_array_equal(run.curves["train/loss"][0], once.curves["train/loss"][0])


def test_a_sweep_gives_the_same_numbers_as_training(tmp_path):
    kept = {}
    with Store(tmp_path / "runs.db") as store:
        archive = sweep(
            regression(), METAOPT, seeds=2, steps=20, episodes=3, eval_every=10, eval_batches=5,
            store=store, set="episodes", keep=lambda *found: kept.update({found[:2]: found[2]}),
        )  # fmt: skip
        again = sweep(regression(), METAOPT, seeds=2, steps=20, episodes=3, eval_every=10, store=store)
        single = sweep(regression(), METAOPT, seeds=2, steps=60, eval_every=10, store=store)
    cost = {"gradients": 1.0, "state": 7.75}
    assert archive.details == {**cost, "episodes": 3} == again.details and single.details == cost
    np.testing.assert_array_equal(archive.curves["train/loss"], again.curves["train/loss"])
    assert np.all(archive.ids != single.ids)
    assert kept.keys() == {(0, 0), (0, 1)}
    for seed in (0, 1):
        run = train(regression(), METAOPT, steps=20, episodes=3, eval_every=10, key=jax.random.key(seed))
        for name in ("train/loss", "inner/loss", "optimizer/coefficients.sum"):
            np.testing.assert_allclose(
                archive.curves[name][0, seed], run.curves[name], rtol=1e-4, err_msg=name
            )
        np.testing.assert_allclose(kept[0, seed].opt.coefficients, run.state.opt.coefficients, rtol=1e-4)


def test_calls_of_any_length_meet_between_episodes(monkeypatch):
    whole = sweep(regression(), METAOPT, seeds=1, steps=20, episodes=4, eval_every=5)
    monkeypatch.setattr(runner, "_CALL_SECONDS", 0.0)  # one window for each call
    parts = sweep(regression(), METAOPT, seeds=1, steps=20, episodes=4, eval_every=5)
    for name, curve in whole.curves.items():
        np.testing.assert_array_equal(curve, parts.curves[name], err_msg=name)


def test_a_divergence_ends_with_its_episode():
    curves = mask_diverged({"loss": np.ones((1, 7))}, [0, 10, 20, 30, 40, 50, 60], [25], 3)
    assert np.isnan(curves["loss"][0]).tolist() == [False, False, False, True, True, False, False]
    at_the_start = mask_diverged({"loss": np.ones((1, 7))}, [0, 10, 20, 30, 40, 50, 60], [20], 3)
    assert np.isnan(at_the_start["loss"][0]).tolist() == [False, False, False, True, True, False, False]
    once = mask_diverged({"loss": np.ones((1, 4))}, [0, 10, 20, 30], [30], 1)
    assert not np.isnan(once["loss"]).any()


@pytest.mark.parametrize(("episodes", "every"), [(0, 10), (2, 40)])
def test_unusable_episodes_are_told(episodes, every):
    with pytest.raises(ConfigError, match=r"episodes = 0|eval_every = 40 does not divide steps = 20"):
        train(regression(), METAOPT, steps=20, episodes=episodes, eval_every=every, key=jax.random.key(0))


def test_an_interrupted_run_goes_on_in_the_middle_of_its_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_CALL_SECONDS", 0.0)
    monkeypatch.setattr(runner, "_CHECKPOINT_SECONDS", -1.0)
    settings = {"seeds": 1, "steps": 20, "episodes": 4, "eval_every": 5, "set": "episodes"}
    parts = []

    def stop(part):
        parts.append(part)
        if len(parts) == 7:
            raise KeyboardInterrupt

    with Store(tmp_path / "runs.db") as store:
        with pytest.raises(KeyboardInterrupt):
            sweep(regression(), METAOPT, store=store, report=stop, **settings)
        rest = []
        resumed = sweep(regression(), METAOPT, store=store, report=rest.append, **settings)
    assert rest[0] == 6 / 16 and sum(rest) == 1  # six of sixteen windows were in the checkpoint
    whole = sweep(regression(), METAOPT, **settings)
    for name, curve in whole.curves.items():
        np.testing.assert_array_equal(curve, resumed.curves[name], err_msg=name)
