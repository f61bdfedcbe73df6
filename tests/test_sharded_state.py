"""Every optimizer leaves its state and its updates where the parameters are, on eight devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from outeropt import optimizers


# Names that differ in numbers only stand for one another.
REGISTERED = [
    name for name in optimizers.names() if not name.startswith(("learned:amalgam", "opt_list_", "nadamw_"))
]
COMPOUND = [
    *("opt_list_0", "nadamw_cosine", "learned:amalgam-mean-1", "learned:amalgam-choice-small-1"),
    *("hypergradient:adam", "metaopt:adam", "driven:adam", "one_pass:adam", "averaged:adam", "mars:adam"),
    *("schedule_free:adam", "mechanic:adam", "cautious:adam", "clip_norm:adam", "clip_adaptive:adam"),
]
NAMES = [*REGISTERED, *COMPOUND]
EXPLICIT = ["adamw", "prodigy", "schedule_free_adamw", "hypergradient:adam", "learned:small_fc"]
# optax makes these from shapes alone: they lie on one device until the first step.
MADE_FROM_SHAPES = {"galore", "lbfgs", "sm3"}
# A projection matrix that happens to have the parameter's shape.
NO_PARAMETER = {"galore"}
# Products with matrices of a tensor's own, and optax's inner products of flattened tensors.
GATHER = {
    *("dadapt_adamw", "galore", "lbfgs", "muon", "psgd_kron", "shampoo", "soap"),
    *("learned:amalgam-mean-1", "learned:amalgam-choice-small-1"),
}
# Directions without any gradient have no basis of their own: rounding turns them, and Adam scales them up.
LOOSE = {"soap": 0.5}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the program saw of each name, on devices of its own."""
    out, here = tmp_path_factory.mktemp("sharded") / "seen.json", Path(__file__).parent
    words = [str(here / "sharded_states.py"), str(out), *NAMES, *(f"explicit={name}" for name in EXPLICIT)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=600, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_states_and_updates_are_where_the_parameters_are(seen, name):
    found = seen[name]
    assert found["updates"] == []
    assert found["state"] == [] or name in NO_PARAMETER
    assert found["init"] == [] or name in MADE_FROM_SHAPES
    assert found["error"] < LOOSE.get(name, 1e-4)
    assert found["gathered"] == [] or name in GATHER


@pytest.mark.parametrize("name", EXPLICIT)
def test_explicit_meshes_place_what_a_program_makes(seen, name):
    assert seen[f"explicit={name}"] == []


def test_a_gathered_parameter_would_be_seen(seen):
    # Otherwise the tests above could not fail.
    assert max(seen["muon"]["gathered"]) >= 8 * 16
    assert seen["sm3"]["init"] and len({len(each["init"]) for each in seen.values() if "init" in each}) > 1
