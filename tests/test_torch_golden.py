"""Optimizers of PyTorch against their authors' own packages (see tests/golden/meta_opt/README.md)."""

import pathlib

import numpy as np
import pytest


torch = pytest.importorskip("torch")

import outeropt.torch  # noqa: E402


torch.set_num_threads(1)  # tensors here are tiny

RUNS = np.load(pathlib.Path(__file__).parent / "golden" / "meta_opt" / "baselines_torch.npz")
CASES = sorted({key.partition(".settings.")[0] for key in RUNS.files if ".settings." in key})
NAMES = {
    "schedulefree_sgd": "schedule_free_sgd",
    "schedulefree_adamw": "schedule_free_adamw",
    "schedulefree_radam": "schedule_free_radam",
}
WORDS = {"use_bias_correction": "bias_correction", "use_fstar": "adapt_lower_bound"}
# In these runs the package keeps some numbers in float32: their first twenty steps are compared.
HALF_WIDE = ("mechanic.", "momo_adam", "momo.wd_bias")


def from_authors(case, params):
    """Our optimizer with the settings of a run of the authors' package."""
    start = f"{case}.settings."
    given = {key.removeprefix(start): RUNS[key].tolist() for key in RUNS.files if key.startswith(start)}
    settings = {WORDS.get(word, word): value for word, value in given.items()}
    name = case.partition(".")[0]
    if name == "mechanic":
        name = "_".join(case.split(".")[:2])
    if name == "prodigy":
        settings = {"bias_correction": False, **settings}
    return outeropt.torch.get(NAMES.get(name, name), params, **settings)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_packages(case):
    inputs, targets = (torch.tensor(RUNS[f"problem.{part}"]) for part in "XY")
    params = [torch.nn.Parameter(torch.tensor(RUNS[f"problem.{part}"])) for part in ("W0", "b0")]
    optimizer = from_authors(case, params)
    found = {"params": [], "loss": [], "eval_params": []}

    def look(kind):
        found[kind].append(torch.cat([param.detach().reshape(-1) for param in params]).numpy())

    for _ in range(30):
        optimizer.zero_grad()
        loss = 0.5 * ((inputs @ params[0] + params[1] - targets) ** 2).sum(1).mean()
        loss.backward()
        optimizer.step(value=loss.detach())
        found["loss"].append(loss.item())
        look("params")
        optimizer.eval()
        look("eval_params")
        optimizer.train()
    steps = 20 if case.startswith(HALF_WIDE) else 30
    for kind, values in found.items():
        if f"{case}.f64.{kind}" in RUNS.files:
            expected = RUNS[f"{case}.f64.{kind}"][:steps]
            np.testing.assert_allclose(values[:steps], expected, rtol=1e-5, atol=1e-7, err_msg=kind)
            assert np.ptp(expected) > 0


def test_every_run_is_compared():
    assert len(CASES) == 42 and sum(f"{case}.f64.eval_params" in RUNS.files for case in CASES) == 7
