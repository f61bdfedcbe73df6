"""What importing and asking for help costs, and that every public name is there."""

import subprocess
import sys

import pytest

import outeropt
from outeropt.cli.main import VERBS, main


LIST = "import sys; print('HEAVY', sorted({'jax', 'optax', 'matplotlib', 'plotly'} & {*sys.modules}))"


def fresh(code: str) -> subprocess.CompletedProcess:
    """Runs code in a new process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_names_of_rooms_above_are_known_without_importing_them():
    code = (
        "from outeropt import optimizers\n"
        "assert 'learned:small_fc' in optimizers.names()\n"
        "print(type(optimizers.get('clip:learned:small_fc').inner).__name__)"
    )
    assert fresh(code).stdout.split() == ["AdafacMLP"]
    code = "import sys, outeropt; outeropt.optimizers.get('adam'); print('outeropt.learned' in sys.modules)"
    assert fresh(code).stdout.split() == ["False"]


@pytest.mark.parametrize(
    "code",
    [
        "import outeropt; dir(outeropt); outeropt.__version__",
        "import outeropt.store",
        "import outeropt.errors, outeropt.cli.main, outeropt.cli.config",
        *(
            f"from outeropt.cli.main import main; assert main({words!r}) == 0"
            for words in ([], ["--help"], ["--version"])
        ),
        "from outeropt.cli.main import main, VERBS\n"
        "for verb in VERBS: assert main([verb, '--help']) == 0, verb",
    ],
)
def test_names_and_help_load_nothing_heavy(code):
    ended = fresh(f"{code}\n{LIST}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "HEAVY []"


def test_training_does_load_jax():
    # Otherwise the test above could not fail.
    ended = fresh(f"import outeropt; outeropt.train\n{LIST}")
    assert ended.stdout.splitlines()[-1] == "HEAVY ['jax', 'optax']"


def test_every_public_name_is_there():
    for name in outeropt.__all__:
        assert getattr(outeropt, name) is not None
    assert set(outeropt.__all__) <= {*dir(outeropt)}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = outeropt.nothing


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_it_takes(verb, capsys):
    assert main([verb, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: outeropt {verb}")


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {verb} " in told for verb in VERBS)
