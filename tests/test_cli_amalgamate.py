"""`outeropt amalgamate`: presets, lists, what is wrong in one line, and the configurations that ship."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from outeropt import learned, tasks
from outeropt.amalgamation import STRATEGIES, Curriculum, Repeat
from outeropt.cli.amalgamate import Config
from outeropt.cli.amalgamation import _training
from outeropt.cli.config import parse
from outeropt.cli.main import main
from outeropt.errors import ConfigError
from outeropt.learned import ChoiceLarge, ChoicePool, RNNProp


CONFIGS = Path(__file__).parents[1] / "configs" / "amalgamate"
FILES = sorted(CONFIGS.glob("*.yaml"))
PRESETS = sorted(Config.PRESETS.glob("*.yaml"))
MINE = ("--out", "runs", "--tasks", "Quadratic_10")
SHORT = shlex.split(
    "--strategy simple --strategy.num-periods 1 --strategy.unroll 2 --strategy.depth 1 --strategy.epochs 1 "
    "--strategy.warmup 1 --strategy.validation-unroll 2 --strategy.validation-depth 1 "
    "--strategy.validation-epochs 1 --settings.hidden-sizes 2"
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(*words):
    return parse("amalgamate", Config, [*MINE, *words])


def made(*words):
    """The training that a command stands for."""
    return _training(parsed(*words))


# Help and lists ---------------------------------------------------------------------------------------------


def test_help_needs_no_jax():
    code = (
        "import sys\nfrom outeropt.cli.main import main\n"
        "assert main(['amalgamate', '--help']) == main(['list', 'presets']) == 0\n"
        "print('HEAVY', sorted({'jax', 'optax', 'equinox', 'matplotlib'} & {*sys.modules}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "HEAVY []"
    for option in ("--out", "--teachers", "--preset", "--scale-spread", "--strategy.NAME", "--rematerialise"):
        assert option in ended.stdout
    assert all(path.stem in ended.stdout.split() for path in PRESETS)


def test_presets_are_listed(capsys):
    assert main(["list", "presets"]) == 0
    assert capsys.readouterr().out.split() == [path.stem for path in PRESETS]
    assert main(["list", "presets", "il_*"]) == 0
    assert capsys.readouterr().out.split() == ["il_adjusted", "il_more", "il_staged"]
    assert main(["list", "presets", "zzz"]) == 2


# Presets and lists ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["--preset fgsm,il_more", "--preset fgsm il_more", "--preset fgsm --presets il_more",
              "--preset fgsm, il_more"]
)  # fmt: skip
def test_presets_add_up(words):
    config = parsed(*words.split())
    assert config.perturbation == "fgsm" and config.tasks == ("Quadratic_10",)
    assert config.strategy_settings == {"imitation": [0.2, 0.1, 0.05, 0.02]}


def test_a_preset_wins_over_files_and_a_flag_over_presets(folder):
    (folder / "a.yaml").write_text(
        "perturbation: gaussian\nstrategy_settings: {imitation: [1.0], epochs: 7}\n"
    )
    given = ["-c", "a.yaml", "--preset", "fgsm", "il_staged"]
    for words in (given, ["--preset", "fgsm", "il_staged", "-c", "a.yaml"]):
        config = parsed(*words)
        assert config.perturbation == "fgsm"
        assert config.strategy_settings == {"imitation": [1.0, 0.0, 0.0, 0.0], "epochs": 7}
    config = parsed(*given, "--perturbation", "none", "--strategy.imitation", "0.5")
    assert config.perturbation == "none"
    assert config.strategy_settings == {"imitation": 0.5, "epochs": 7}


@pytest.mark.parametrize(
    ("names", "key", "flag"),
    [
        ("fgsm,pgd", "perturbation is fgsm in ", "--perturbation."),
        ("il_more,il_staged", "strategy_settings.imitation is [0.2, ", "--strategy.imitation."),
        ("inoise_1e-1,inoise_1e-2", "perturbation_settings.noise_stddev is 0.1 in ", "--perturbation.noise-"),
        ("conv_train,conv_avg", "tasks is ('conv_train',) in ", "--tasks."),
    ],
)
def test_presets_that_disagree(names, key, flag, folder):
    with pytest.raises(ConfigError) as error:
        parse("amalgamate", Config, ["--out", "runs", "--preset", names])
    told = str(error.value)
    assert told.startswith(key) and flag in told and "override" not in told
    assert "Leave one of these presets out, or decide with " in told
    for name in names.split(","):
        assert f"{name}.yaml" in told
    # A file does not decide between them; a flag does.
    (folder / "a.yaml").write_text("perturbation: gaussian\n")
    with pytest.raises(ConfigError, match="perturbation is fgsm"):
        parsed("-c", "a.yaml", "--preset", "fgsm,pgd")
    assert parsed("--preset", "fgsm,pgd", "--perturbation", "cgd").perturbation == "cgd"


def test_lists_on_the_command_line_and_in_files(folder):
    strategy = made("--strategy.depth", "1,2", "--strategy.imitation=0.5,1e-3").strategy
    assert (strategy.depth, strategy.imitation) == ((1, 2), (0.5, 0.001))
    (folder / "a.yaml").write_text(
        "strategy_settings: {depth: [1, 2], imitation: [1e-1, 1e-3], warmup_rate: 1e-2, threshold: 5e-1, "
        "epochs: {start: 4, factor: 5e-1}}\n"
    )
    strategy = made("-c", "a.yaml").strategy
    assert strategy == Curriculum(
        depth=(1, 2), imitation=(0.1, 0.001), warmup_rate=0.01, threshold=0.5,
        epochs={"start": 4, "factor": 0.5},
    )  # fmt: skip


def test_flags_replace_lists_of_files():
    for option in ("--teacher", "--teachers"):
        config = parsed("-c", str(CONFIGS / "min_max.yaml"), option, "sgd")
        assert config.teachers == ("sgd",) and config.tasks == ("Quadratic_10",)


def test_pools_of_choice_policies(folder):
    student = made("--architecture", "ChoicePool", "--settings.pool", "sgd,adam")._fresh.student
    assert isinstance(student, ChoicePool) and student.pool == ("sgd", "adam")
    (folder / "a.yaml").write_text('settings: {pool: [sgd, "static_adam,learning_rate=0.02"]}\n')
    student = made("--architecture", "ChoicePool", "-c", "a.yaml")._fresh.student
    assert isinstance(student, ChoicePool) and student.pool[1] == "static_adam,learning_rate=0.02"


def test_a_policy_may_learn_otherwise_than_it_is_used():
    run = made("--architecture", "ChoiceLarge", "--preset", "hard")
    assert isinstance(run._fresh.student, ChoiceLarge) and run._fresh.student.selection == "gumbel"
    assert run.optimizer.settings["selection"] == "hard"
    assert run._fresh.student.hardness == run.optimizer.settings["hardness"] == 10.0
    run = made("--settings-learning.output-scale", "2", "--settings.output-scale", "0.5")
    assert (run._fresh.student.output_scale, run.optimizer.settings["output_scale"]) == (2.0, 0.5)


# What ships -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_configurations_that_ship_can_be_run(file):
    config = parse("amalgamate", Config, ["-c", str(file), "--out", "runs"])
    assert {*config.tasks} <= {*tasks.names()} and config.strategy in STRATEGIES
    run = _training(parse("amalgamate", Config, ["-c", str(file), *MINE]))
    assert len(run._recipe.teachers) == len(config.teachers)
    commands = re.findall(r"outeropt (amalgamate .*)", file.read_text())
    assert commands, "each says how it is run"
    for words in commands:
        verb, *rest = words.split()
        # Its paths begin at the repository.
        rest = [str(CONFIGS.parents[1] / word) if word.startswith("configs/") else word for word in rest]
        assert parse(verb, Config, rest).tasks == config.tasks


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_presets_that_ship_can_be_run(file):
    content = yaml.safe_load(file.read_text())
    words = ["--preset", file.stem, *(["--architecture", "ChoiceLarge"] if file.stem == "hard" else [])]
    config = parse("amalgamate", Config, ["--out", "runs", *([] if "tasks" in content else MINE[2:]), *words])
    assert {*config.tasks} <= {*tasks.names()}
    for key, value in content.items():
        got = getattr(config, key)
        if isinstance(value, dict):
            assert {name: list(v) if isinstance(v, tuple) else v for name, v in got.items()} == value
        else:
            assert got == (tuple(value) if isinstance(value, list) else value)
    made(*words)


def test_presets_are_the_published_ones():
    assert made("--preset", "cl_fixed").strategy == Repeat(
        num_periods=5, depth=(1, 2, 5), imitation=0.0, warmup=(0, 1), warmup_rate=(0.0, 0.05),
        validation_epochs=1, validation_depth=10, validation_warmup=1, threshold=0.9,
    )  # fmt: skip
    student = made("--preset", "half_depth")._fresh.student
    assert isinstance(student, RNNProp) and student.hidden_sizes == (20,)
    run = made("--preset", "noscale,nowup,reduce_mean,gaussian_rel")
    assert float(run._recipe.spread) == 0.0 and run.strategy == Curriculum(warmup=0)
    assert run._recipe.losses.reduction == "mean"
    assert float(run._recipe.perturbation.noise_stddev) == pytest.approx(5e-4)
    assert float(run._recipe.outer.hyperparameters["inner.learning_rate"]) == pytest.approx(1e-3)


# What is wrong ----------------------------------------------------------------------------------------------

WRONG = [
    # names
    ("--tasks Quadratic_1O", "No task is called 'Quadratic_1O'. Did you mean Quadratic_10"),
    ("--teachers adm", "No optimizer is called 'adm'. Did you mean adam"),
    ("--teachers sgd nowhere/x", "No optimizer is called 'nowhere/x'."),
    ("--teachers empty", "empty holds no optimizer.safetensors"),
    ("--architecture RNNPropp", "No architecture is called 'RNNPropp'. Did you mean RNNProp"),
    ("--strategy curiculum", "No strategy is called 'curiculum'. Did you mean curriculum?"),
    ("--perturbation pdg", "No perturbation is called 'pdg'. Did you mean pgd?"),
    ("--outer adm", "No optimizer is called 'adm'. Did you mean adam"),
    ("--weights nowhere", "No learned optimizer or file is called 'nowhere'."),
    ("--preset fgms", "No preset is called 'fgms'. Did you mean fgsm? All names: outeropt list presets"),
    ("--preset", "--preset needs names, as in outeropt amalgamate --preset fgsm; see outeropt list presets."),
    ("--preset hard", "No setting of RNNProp is called 'selection'."),
    # options
    ("--teachrs sgd", "Unrecognized options: --teachrs, sgd. Did you mean --teacher"),
    ("--inner.x 3", "takes no --inner.* options; it takes --settings.*, --settings-learning.*, --strategy.*"),
    ("-c nowhere.yaml", "Configuration file nowhere.yaml cannot be read: No such file or directory."),
    ("-c keys.yaml", "Unknown key 'teacher' in keys.yaml; did you mean teachers"),
    ("-c types.yaml", "scale_spread in types.yaml must be a number, not 'wide'."),
    # settings
    ("--strategy.deepth 3", "No setting of strategy is called 'deepth'. Did you mean depth"),
    ("--strategy repeat --strategy.num-stages 3", "No setting of strategy is called 'num_stages'."),
    ("--strategy.name x", "No setting of strategy is called 'name'."),
    ("--losses.reducton max", "No setting of losses is called 'reducton'. Did you mean reduction?"),
    ("--perturbation.magnitude 1", "No setting of perturbation is called 'magnitude'. All names: none"),
    ("--settings.hidden-size 3", "No setting of RNNProp is called 'hidden_size'. Did you mean hidden_sizes?"),
    ("--settings-learning.outptu x", "No setting of RNNProp is called 'outptu'. Did you mean output"),
    ("--outer.learning-rat 3", "No hyperparameter is called 'learning_rat'. Did you mean learning_rate?"),
    # values
    ("--strategy.depth 1,x", "depth = [1, 'x'] is not possible; give whole numbers of at least 1"),
    ("--strategy.depth 1,0", "depth = [1, 0] is not possible"),
    ("--strategy.depth 1.5", "depth = 1.5 is not possible"),
    ("--strategy.depth inf", "depth = inf is not possible"),
    ("--strategy.depth true", "--strategy.depth must be a number or a word, not True."),
    ("--strategy.imitation -1", "imitation = -1 is not possible; give numbers of at least 0"),
    ("--strategy.num-periods 2.5", "--strategy.num-periods must be a whole number, not 2.5."),
    ("--strategy.num-periods 0", "num_periods = 0 is not possible"),
    ("--strategy.threshold x", "--strategy.threshold must be a number, not 'x'."),
    ("-c geometric.yaml", "depth = {'start': 1} is not possible"),
    ("--losses.reduction min", "reduction = 'min' is unknown; it is max or mean."),
    ("--losses.huber x", "--losses.huber must be a number, not 'x'."),
    ("--losses.huber -1", "huber = -1 must be at least 0"),
    ("--losses.mixture imitation", "The imitation loss needs teachers"),
    ("--perturbation pgd --perturbation.magnitude x", "--perturbation.magnitude must be a number, not 'x'."),
    ("--perturbation pgd --perturbation.magnitude true", "--perturbation.magnitude must be a number, not Tr"),
    ("--perturbation pgd --perturbation.magnitude 0", "magnitude of a perturbation is 0; give a positive"),
    ("--perturbation pgd --perturbation.steps 1.5", "--perturbation.steps must be a whole number, not 1.5."),
    ("--perturbation pgd --perturbation.steps 0", "steps = 0 of a perturbation is not possible"),
    ("--perturbation projected_pgd --perturbation.norm l1", "norm = 'l1' of a perturbation is unknown"),
    ("--settings.hidden-sizes x", "hidden_sizes of RNNProp must be a whole number, not 'x'."),
    ("--settings-learning.hidden-sizes 4", "RNNProp with {'hidden_sizes': (4,)} has other meta-parameters"),
    ("--settings-learning.output-scale x", "output_scale of RNNProp must be a number, not 'x'."),
    (
        "--weights amalgam-min-max-1 --settings.hidden-sizes 3",
        "--architecture and --settings.* are for a fre",
    ),
    ("--outer.learning-rate x", "learning_rate of clip_adaptive:adam must be a number, not 'x'."),
    ("--outer.learning-rate -1", "learning_rate = -1 is outside its space"),
    ("--outer sam:adam", "The outer loop has a gradient, and nothing else to offer: Sharpness-aware"),
    ("--teacher adam,learning_rate=x", "learning_rate of adam must be a number, not 'x'."),
    ("--scale-spread -1", "The spread of the scale is -1.0; give a number of at least 0."),
    ("--scale-spread inf", "The spread of the scale is inf"),
    ("--seed -1", "Seed -1 is not allowed; seeds are whole numbers from 0 to 4294967295."),
    ("--seed x", "--seed must be a whole number, not 'x'."),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[words for words, _ in WRONG])
def test_what_is_wrong_is_one_line_and_nothing_is_written(words, message, folder, capsys):
    (folder / "empty").mkdir()
    (folder / "keys.yaml").write_text("teacher: [sgd]\n")
    (folder / "types.yaml").write_text("scale_spread: wide\n")
    (folder / "geometric.yaml").write_text("strategy_settings: {depth: {start: 1}}\n")
    before = {*folder.rglob("*")}
    given = MINE if not words.startswith("--tasks") else MINE[:2]
    assert main(["amalgamate", *given, *words.split()]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("outeropt: ") and told.err.count("\n") == 1
    assert message in told.err
    assert {*folder.rglob("*")} == before


@pytest.mark.parametrize("missing", ["--out", "--tasks"])
def test_what_must_be_given(missing, capsys, folder):
    words = {"--out": "runs", "--tasks": "Quadratic_10"}
    assert main(["amalgamate", *(w for pair in words.items() if pair[0] != missing for w in pair)]) == 2
    assert f"Missing from outeropt amalgamate: {missing}" in capsys.readouterr().err
    assert not list(folder.iterdir())


# A run ------------------------------------------------------------------------------------------------------


def test_the_command_distils_a_student(folder, capsys):
    words = ["amalgamate", *MINE, *SHORT, "--teachers", "static_adam", "--seed", "4"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.startswith("Student: runs/optimizer.safetensors   next: outeropt evaluate --weights runs ")
    student = learned.load("runs")
    assert isinstance(student, RNNProp) and student.hidden_sizes == (2,)
    assert (student.warmup_steps, student.warmup_rate) == (2, 0.05)
    config = yaml.safe_load((folder / "runs" / "config.yaml").read_text())
    assert config == learned.about("runs") and "out" not in config
    assert (config["tasks"], config["teachers"], config["seed"]) == (["Quadratic_10"], ["static_adam"], 4)
    assert config["strategy_settings"]["unroll"] == 2
    files = {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}

    # The same again has nothing to do; another one is refused, by the first key that differs.
    assert main(words) == 0
    for more, key in (
        (["--seed", "5"], "seed = 4, not 5."),
        (["--losses.reduction", "mean"], "losses = {}, not {'reduction': 'mean'}."),
        (["--teachers", "sgd"], "teachers = ['static_adam'], not ['sgd']."),
    ):
        capsys.readouterr()
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert f"runs holds an amalgamation with {key}" in error and error.count("\n") == 1
    assert files == {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}

    # What it wrote is a configuration, and the student may teach or go on learning.
    again = parse("amalgamate", Config, ["-c", "runs/config.yaml", "--out", "again"])
    assert _training(again)._fresh.student.settings["hidden_sizes"] == (2,)  # pyright: ignore
    assert made("--teachers", "runs")._recipe.teachers[0].settings["warmup_steps"] == 0  # pyright: ignore
    assert made("--weights", "runs")._fresh.student.settings["hidden_sizes"] == (2,)  # pyright: ignore
