"""Whole amalgamations: they improve, keep their folder, go on exactly where they were, compile once."""

import collections
import contextlib
import csv
import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import yaml

from outeropt import checkpoint, learned, optimizers, training
from outeropt.amalgamation import (
    Amalgamation,
    Curriculum,
    Losses,
    Repeat,
    Simple,
    amalgamate,
    period,
    race,
    run,
)
from outeropt.amalgamation.outer import learn, watch
from outeropt.amalgamation.perturbations import Gaussian, RelativeGaussian
from outeropt.errors import ConfigError, OuteroptError
from outeropt.learned import ChoiceLarge, ChoicePool, RNNProp
from toys import regression


KEY = jax.random.key(2)
TASK = regression()
TEACHERS = (
    optimizers.get("static_adam", learning_rate=0.1),
    optimizers.get("root_rmsprop", learning_rate=0.1),
)
STUDENT = RNNProp(hidden_sizes=(4,), key=jax.random.key(1))
UNROLL = 3
STAGED = Curriculum(
    num_stages=2,
    num_periods=1,
    num_chances=1,
    unroll=UNROLL,
    depth=(1, 2, 2),
    imitation=(0.5, 0.1),
    epochs=1,
    warmup=(1, 2, 1),
    warmup_rate=(0.02, 0.01),
    max_repeat=2,
    threshold=0.0,
)
# Which periods there are, in the hands of `uphill`.
PLACES = [(0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)]
CONFIG = {"tasks": ["toy"], "strategy": "curriculum", "seed": 2, "losses": {"reduction": "max"}}
COLUMNS = (
    "validation,time,duration,stage,period,repeat,warmup,warmup_rate,p_teacher,depth,unroll_len,epochs,"
    "meta_loss,imitation_loss"
)


def outer(rate=0.01):
    return optimizers.get("clip_adaptive:adam", learning_rate=rate)


def uphill(rate):
    """An outer loop that makes students worse and worse, so that periods are repeated and stages end."""
    return eqx.tree_at(lambda o: o.inner.values["learning_rate"], outer(), jnp.float32(-rate))


def amalgamation(strategy=STAGED, student=STUDENT, teachers=TEACHERS, **options):
    given = {"key": KEY, "outer": outer(), "perturbation": RelativeGaussian(1e-3), "spread": 1.0} | options
    return Amalgamation(student, teachers, [TASK], strategy=strategy, **given)


def simple(periods=2, **options):
    given = {"unroll": UNROLL, "depth": 2, "epochs": 1, "warmup": 1, "warmup_rate": 0.02}
    given |= {
        "validation_unroll": UNROLL,
        "validation_depth": 2,
        "validation_epochs": 1,
        "validation_warmup": 1,
    }
    return Simple(num_periods=periods, **given | options)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def rows(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def compilations():
    """Programs of unrolls that are built inside the block, with how often."""
    built = collections.Counter()

    def listen(event, duration, fun_name="", **_):
        name = fun_name.removeprefix("jit(").removesuffix(")")
        if event.endswith("backend_compile_duration") and name in ("start", "warm_up", "learn", "watch"):
            built[name] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield built
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Programs that are compiled fast rather than well."""
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    programs = {"_warm_up": race.warm_up, "_learn": learn, "_watch": watch}
    with pytest.MonkeyPatch.context() as patch:
        for name, program in programs.items():
            patch.setattr(period, name, eqx.filter_jit(program, compiler_options=options))
        yield


class Stopped(Exception):
    pass


class Stop:
    """Interrupts a training in its n-th unroll."""

    def __init__(self, after):
        self.left, self.told = after, []

    def period(self, label, total, done):
        self.told.append((label, total, done))

    def unroll(self, note):
        self.left -= 1
        if not self.left:
            raise Stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A curriculum from its start to its end: the training, its folder, what it compiled."""
    folder = tmp_path_factory.mktemp("whole")
    made = amalgamation(outer=uphill(0.01))
    with compilations() as built:
        assert made.resume(folder, CONFIG) == 0
        made.run()
    return made, folder, dict(built)


def test_one_program_serves_all_unrolls(whole):
    # Training has the teachers, validation has not.
    assert whole[2] == {"start": 2, "warm_up": 2, "learn": 1, "watch": 1}
    changed = {"key": jax.random.key(7), "perturbation": RelativeGaussian(0.1), "outer": outer(0.1)}
    with compilations() as built:
        amalgamation(simple(imitation=(3.0, 0.0), warmup_rate=0.5), spread=0.0, **changed).run()
    assert not built


def test_a_summary_has_the_published_columns(whole, tmp_path):
    made, folder, _ = whole
    assert (folder / "summary.csv").read_text().split("\n")[0] == COLUMNS
    found = rows(folder)
    assert [dataclasses.astuple(record.place) for record in made.records] == PLACES
    assert len(found) == len(PLACES)
    losses = {(row["stage"], row["period"], row["meta_loss"]) for row in found}
    assert len(losses) == len(PLACES), "another attempt has other minibatches"
    for row, record in zip(found, made.records):
        place = record.place
        assert (int(row["stage"]), int(row["period"]), int(row["repeat"])) == (
            place.stage, place.period, place.repeat
        )  # fmt: skip
        assert float(row["validation"]) == record.validation and float(row["meta_loss"]) == record.meta_loss
        plan = STAGED.plan_of(place)
        told = [row[name] for name in ("warmup", "warmup_rate", "p_teacher", "depth", "unroll_len", "epochs")]
        assert list(map(float, told)) == [
            plan.warmup, plan.warmup_rate, plan.imitation, plan.depth, UNROLL, 1
        ]  # fmt: skip
        assert 0 < float(row["duration"]) < 600 and float(row["time"]) > 1.7e9
        log = np.load(folder / "log" / f"{STAGED.label(place)}.npz", allow_pickle=False)
        assert float(row["imitation_loss"]) == pytest.approx(log["imitation_loss"].mean(), rel=1e-6)
        assert record.validation == pytest.approx(log["validation_meta_loss"].mean(), rel=1e-6)
    for strategy, wanted in (
        (simple(1), COLUMNS.replace("stage,", "").replace("repeat,", "")),
        (Repeat(**{**vars(simple(1)), "max_repeat": 1}), COLUMNS.replace("stage,", "")),
    ):
        other = amalgamation(strategy)
        other.resume(tmp_path / strategy.name, CONFIG)
        other.run()
        assert (tmp_path / strategy.name / "summary.csv").read_text().split("\n")[0] == wanted


def test_a_folder_holds_students_logs_and_no_pickles(whole):
    made, folder, _ = whole
    labels = {STAGED.label(record.place) for record in made.records}
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "config.yaml", "summary.csv", "optimizer.safetensors",
        *(f"checkpoint/{label}{kind}.safetensors" for label in labels for kind in ("", ".learner")),
        *(f"log/{label}.npz" for label in labels),
    }  # fmt: skip
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG
    for record in made.records:
        label, plan = STAGED.label(record.place), STAGED.plan_of(record.place)
        student = learned.load(folder / "checkpoint" / f"{label}.safetensors")
        assert isinstance(student, RNNProp) and student.hidden_sizes == (4,)
        assert (student.warmup_steps, student.warmup_rate) == (plan.warmup * UNROLL, plan.warmup_rate)
        learner = checkpoint.load(folder / "checkpoint" / f"{label}.learner.safetensors", made._fresh)
        same(learner.student, student.with_settings(warmup_steps=0, warmup_rate=0.05))
        log = np.load(folder / "log" / f"{label}.npz", allow_pickle=False)
        shapes = {name: log[name].shape for name in log.files}
        steps, checks = (1, plan.depth), (1, STAGED.plan(record.place.stage + 1).depth)
        assert shapes == {
            "meta_loss": steps, "imitation_loss": steps, "skipped": steps, "cut": steps,
            "teacher_counts": (*steps, 2), "teacher_losses": (*steps, 2), "validation_meta_loss": checks,
        }  # fmt: skip
        assert (log["teacher_counts"].sum(axis=-1) == UNROLL).all() and log[
            "teacher_counts"
        ].dtype == np.int32
        assert all(np.isfinite(log[name]).all() for name in log.files)
        assert log["meta_loss"].dtype == np.float32 and not log["cut"].any() and not log["skipped"].any()


def test_the_folder_offers_the_best_student_of_the_last_stage(whole):
    made, folder, _ = whole
    last = [record for record in made.records if record.place.stage == 1]
    best = min(last, key=lambda record: record.validation).place
    offered = learned.load(folder)
    same(offered, learned.load(folder / "checkpoint" / f"{STAGED.label(best)}.safetensors"))
    same(offered, made.optimizer)
    assert offered.settings == made.optimizer.settings
    assert (offered.warmup_steps, offered.warmup_rate) == (2 * UNROLL, 0.01)
    assert learned.about(folder) == CONFIG
    updates, _ = offered.update({"w": jnp.ones(2)}, offered.init({"w": jnp.ones(2)}), {"w": jnp.ones(2)})
    np.testing.assert_allclose(updates["w"], -0.01, rtol=1e-6)


def test_the_best_is_kept_when_later_periods_are_worse(tmp_path):
    """Uphill, the first period has the best student."""
    strategy = simple(4)
    made = amalgamation(strategy, outer=uphill(0.3))
    made.resume(tmp_path, CONFIG)
    made.run()
    values = [record.validation for record in made.records]
    assert np.argmin(values) == 0 and strategy.best(made.records).period == 0
    same(learned.load(tmp_path), learned.load(tmp_path / "checkpoint" / "period_0.safetensors"))


def test_a_training_in_pieces_equals_one_in_one(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SECONDS", 0.0)
    made, folder, _ = whole
    told, pieces = [], 0
    with compilations() as built:
        while True:
            again, stop = amalgamation(outer=uphill(0.01)), Stop(5)
            assert again.resume(tmp_path, CONFIG) == len(again.records)
            try:
                again.run(stop)
                break
            except Stopped:
                pieces += 1
                told += stop.told
    assert pieces >= 6 and any(done for _, _, done in told) and not built
    assert again.records == made.records and again.optimizer.settings == made.optimizer.settings
    times = {"time": None, "duration": None}
    assert [{**row, **times} for row in rows(tmp_path)] == [{**row, **times} for row in rows(folder)]
    for path in folder.rglob("*.npz"):
        one, other = np.load(path), np.load(tmp_path / "log" / path.name)
        assert one.files == other.files
        same([one[name] for name in one.files], [other[name] for name in one.files])
    assert {path.name for path in tmp_path.rglob("*")} == {path.name for path in folder.rglob("*")}
    for path in folder.rglob("*.safetensors"):
        again = tmp_path / path.relative_to(folder)
        same(*map(safetensors.numpy.load_file, (again, path)))
        assert checkpoint.metadata(again) == checkpoint.metadata(path)
    # A folder that is finished has nothing left to do.
    over = amalgamation(outer=uphill(0.01))
    assert over.resume(tmp_path, CONFIG) == len(PLACES)
    over.run(Stop(1))
    same(over.optimizer, made.optimizer)


def test_a_period_that_is_suspended_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SECONDS", 0.0)
    labels = []
    for _ in range(3):
        again, stop = amalgamation(outer=uphill(0.01)), Stop(3)
        again.resume(tmp_path, CONFIG)
        with contextlib.suppress(Stopped):
            again.run(stop)
        labels += stop.told
    # Each time one unroll is lost, the one that was interrupted.
    assert labels == [
        ("stage_0.0.0", 6, 0),
        ("stage_0.0.0", 6, 2),
        ("stage_0.0.0", 6, 4),
        ("stage_0.1.0", 6, 0),
    ]


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"seed": 3}, "seed = 2, not 3"),
        ({"losses": {"reduction": "mean"}}, "losses = {'reduction': 'max'}, not {'reduction': 'mean'}"),
        ({"more": 1}, "more = None, not 1"),
    ],
)
def test_a_folder_of_another_configuration_is_refused(whole, changed, key):
    folder = whole[1]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as error:
        amalgamation().resume(folder, CONFIG | changed)
    assert key in str(error.value) and str(folder) in str(error.value)
    less = {name: value for name, value in CONFIG.items() if name != "strategy"}
    with pytest.raises(ConfigError, match="strategy = 'curriculum', not None"):
        amalgamation().resume(folder, less)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_summary_of_another_program_is_refused(tmp_path):
    (tmp_path / "summary.csv").write_text("period,loss\n0,1.0\n")
    with pytest.raises(OuteroptError, match=r"summary\.csv has a row without validation"):
        amalgamation().resume(tmp_path, CONFIG)


@functools.partial(eqx.filter_jit)
def trained(student, keys):
    """Logarithms of the losses at the end of 12 steps, as shares of the first."""

    def one(key):
        begun = training.start(TASK, student, key, 12)
        _, losses = training.unroll(TASK, student, begun, key, length=12)
        return jnp.log(losses[-3:].mean()) - jnp.log(losses[0])

    return jax.vmap(one)(keys)


def test_a_student_improves():
    keys = jax.random.split(jax.random.key(100), 16)
    strategy = simple(3, epochs=10, depth=2, warmup=0, imitation=0.2)
    made = amalgamation(strategy, outer=outer(0.03))
    before = trained(made.optimizer, keys)
    made.run()
    after = trained(made.optimizer, keys)
    assert float(after.mean()) < float(before.mean()) - 0.5
    losses = [record.meta_loss for record in made.records]
    assert losses[-1] < losses[0] - 0.05


def test_validation_is_not_perturbed():
    still = optimizers.get("sgd", learning_rate=0.0)
    student = optimizers.get("ema_momentum", learning_rate=0.05)
    values = []
    for size in (1e-6, 0.5):
        made = amalgamation(simple(1), student, (), outer=still, perturbation=Gaussian(size))
        made.run()
        values.append(made.records[0])
    assert values[0].validation == values[1].validation
    assert abs(values[0].meta_loss - values[1].meta_loss) > 1e-3, "training is"
    # The same test for each period of a stage, and another one in the next.
    made = amalgamation(STAGED, student, (), outer=still, perturbation=Gaussian(0.5))
    made.run()
    found = {}
    for record in made.records:
        found.setdefault(record.place.stage, set()).add(record.validation)
    assert [len(values) for values in found.values()] == [1, 1] and found[0] != found[1]
    assert len({record.meta_loss for record in made.records}) == len(made.records)


def test_what_is_validated_is_the_student_as_it_is_used():
    student = optimizers.get("ema_momentum", learning_rate=0.05)
    made = amalgamation(simple(1), student, (), finish=lambda learned: learned.replace(learning_rate=0.0))
    made.run()
    # It does not move, and so its losses are those of where it is.
    assert made.records[0].validation == pytest.approx(0.0, abs=1e-6)
    assert made.records[0].meta_loss < -0.01
    assert float(made.optimizer.hyperparameters["learning_rate"]) == 0.0
    kept = made._learners[made.records[0].place].student
    assert float(kept.hyperparameters["learning_rate"]) > 0.01


def test_a_warm_up_of_ones_own_gives_way():
    made = [amalgamation(simple(1)), amalgamation(simple(1), STUDENT.with_settings(warmup_steps=50))]
    finish = functools.partial(RNNProp.with_settings, warmup_steps=50)
    made += [amalgamation(simple(1), finish=finish)]
    with compilations() as built:
        for one in made:
            one.run()
    assert not built
    for one in made[1:]:
        assert one.records == made[0].records
        same(one.optimizer, made[0].optimizer)
        assert one.optimizer.settings["warmup_steps"] == UNROLL


def test_a_hand_designed_student_learns_its_learning_rate(tmp_path):
    start = optimizers.get("powersign", learning_rate=1e-3)
    strategy = simple(2, epochs=10, warmup=0, imitation=0.0)
    made = amalgamation(strategy, start, (), outer=outer(0.02), spread=0.0)
    made.resume(tmp_path, CONFIG)
    made.run()
    rate = float(made.optimizer.learning_rate)
    assert 2e-3 < rate < 1.0
    # Its other numbers are learned too, and stay where they mean something.
    for name, space in start.spaces.items():
        value = float(made.optimizer.hyperparameters[name])
        assert space.contains(value) and (name == "eps" or value != float(start.hyperparameters[name])), name
    assert made.records[1].validation < made.records[0].validation < 0
    again = checkpoint.load(tmp_path / "optimizer.safetensors", start)
    assert float(again.learning_rate) == pytest.approx(rate)
    assert checkpoint.metadata(tmp_path / "optimizer.safetensors")["about"] == CONFIG


def test_choice_policies_learn_and_then_teach(tmp_path):
    policies = {
        "large": ChoiceLarge(hidden_sizes=(3,), key=KEY),
        "pool": ChoicePool(hidden_sizes=(3,), pool=("sgd,learning_rate=0.1", "static_adam"), key=KEY),
    }
    for name, policy in policies.items():
        made = amalgamation(simple(1), policy, (), losses=Losses(mixture="meta"))
        made.resume(tmp_path / name, CONFIG)
        made.run()
        kept = learned.load(tmp_path / name)
        assert type(kept) is type(policy) and kept.settings["warmup_steps"] == UNROLL
        gaps = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(policy))]
        assert max(gaps) > 1e-3 and np.isfinite(gaps).all()
    teachers = [learned.load(tmp_path / name) for name in policies]
    made = amalgamation(simple(1), teachers=teachers)
    made.run()
    assert np.isfinite(made.records[0].meta_loss)
    run_of = made._learners[made.records[0].place]
    assert int(run_of.steps) == 2
    same(made._recipe.teachers, teachers)


def test_several_tasks_share_a_period(tmp_path):
    tasks = [TASK, regression(features=5, name="wider")]
    student, teachers = optimizers.get("ema_momentum", learning_rate=0.05), (optimizers.get("static_adam"),)
    made = Amalgamation(student, teachers, tasks, key=KEY, strategy=simple(1), outer=outer(), spread=0.5)
    made.resume(tmp_path, CONFIG)
    told = Stop(1000)
    made.run(told)
    assert told.told == [("period_0", 12, 0)] and told.left == 1000 - 12
    log = np.load(tmp_path / "log" / "period_0.npz")
    assert log["meta_loss"].shape == (2, 2) and log["teacher_counts"].shape == (2, 2, 1)
    assert log["validation_meta_loss"].shape == (2, 2)
    assert all(np.isfinite(log[name]).all() for name in log.files)
    assert int(made._learners[made.records[0].place].steps) == 4
    assert len(np.unique(log["meta_loss"])) == 4


def test_amalgamate_gives_the_best_student():
    made = amalgamation(simple(1))
    made.run()
    options = {"strategy": simple(1), "outer": outer(), "perturbation": RelativeGaussian(1e-3), "spread": 1.0}
    for tasks in (TASK, [TASK]):
        same(amalgamate(STUDENT, TEACHERS, tasks, key=KEY, **options), made.optimizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "There is nothing to train on: give at least one task."),
        ({"teachers": (), "losses": Losses(mixture="imitation")}, "The imitation loss needs teachers"),
        ({"spread": -1.0}, "The spread of the scale is -1.0; give a number of at least 0."),
        ({"spread": np.nan}, "The spread of the scale is nan"),
        ({"spread": np.inf}, "The spread of the scale is inf"),
    ],
)
def test_what_cannot_be_amalgamated(options, message):
    given = {"teachers": TEACHERS, "tasks": [TASK]} | options
    with pytest.raises(ConfigError, match=message):
        Amalgamation(STUDENT, key=KEY, **given)
