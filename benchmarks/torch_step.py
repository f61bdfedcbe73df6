"""What a step of every optimizer of `outeropt.torch` costs beside one of `torch.optim.AdamW`.

    python benchmarks/torch_step.py                        # CPU, two threads, 1M and 10M parameters
    python benchmarks/torch_step.py --device cuda --compile
    python benchmarks/torch_step.py --only prodigy schedule_free_adamw --sizes 1

The parameters are those of a perceptron of equal layers, with biases; gradients are random and stay. Each
round makes one step after another, in an order drawn for the round; printed are the median over the rounds
and the quartiles, the ratio to AdamW's median (its `foreach` form, which is torch's default on a GPU), and
the optimizer's state in bytes a parameter. With `--compile` the steps of `outeropt.torch` are
compiled; torch's own are not, so that the ratio stays one to the same thing.
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import outeropt.torch


REFERENCE = "torch AdamW (foreach)"
# Width and number of layers, by millions of parameters.
NETWORKS = {1: (500, 4), 10: (1000, 10), 100: (2500, 16)}
# One-pass tuning differentiates losses, of which there are none. Optimizers of other weights cost the same.
AMALGAM = "learned:amalgam-choice-large-7"
TWINS = {name for name in outeropt.torch.names() if "amalgam" in name} - {AMALGAM}
NAMES = [name for name in outeropt.torch.names() if not name.startswith("one_pass") and name not in TWINS]
# What some must be told; and the network itself, not the steps of SGD before it.
TOLD = {name: {"num_steps": 1_000_000} for name in ("learned:small_fc", "learned:mlp_nominal")}
TOLD[AMALGAM] = {"warmup_steps": 0}


def parameters(millions: int, device: str) -> list[torch.nn.Parameter]:
    """Of a perceptron, with gradients."""
    width, layers = NETWORKS[millions]
    drawn = torch.Generator().manual_seed(0)
    found = []
    for shape in [(width, width), (width,)] * layers:
        weights, grads = (torch.randn(shape, generator=drawn).to(device) for _ in range(2))
        param = torch.nn.Parameter(0.03 * weights)
        param.grad = 0.01 * grads
        found.append(param)
    return found


def contenders(only: list[str]) -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """What makes an optimizer of parameters, by the name of its row; the reference first."""
    adamw = torch.optim.AdamW
    found: dict[str, Callable[..., torch.optim.Optimizer]] = {
        REFERENCE: lambda params: adamw(params, lr=1e-3, foreach=True),
        "torch AdamW (fused)": lambda params: adamw(params, lr=1e-3, fused=True),
    }
    for name in only or NAMES:
        found[name] = lambda params, name=name: outeropt.torch.get(name, params, **TOLD.get(name, {}))
    return found


def state_bytes(state: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(state, dict):
        return sum(map(state_bytes, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(state_bytes, state))
    return state.nbytes if isinstance(state, torch.Tensor) else 0


def stepper(optimizer: torch.optim.Optimizer, device: str, compiled: bool) -> Callable[[], float]:
    """Makes a step and says how many seconds it took."""
    ours = type(optimizer).__module__.startswith("outeropt.")
    given = {"value": torch.ones((), device=device)} if ours else {}
    optimizer.step(**given)  # makes the state
    step = torch.compile(optimizer.step) if compiled and ours else optimizer.step

    def timed() -> float:
        wait(device)
        began = time.perf_counter()
        step(**given)
        wait(device)
        return time.perf_counter() - began

    for _ in range(3):
        timed()
    return timed


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def table(millions: int, options: argparse.Namespace) -> None:
    """Prints a Markdown table."""
    steps, sizes, entries = {}, {}, 0
    for name, make in contenders(options.only).items():
        params = parameters(millions, options.device)
        entries = sum(param.numel() for param in params)
        optimizer = make(params)
        steps[name] = stepper(optimizer, options.device, options.compile)
        sizes[name] = state_bytes(optimizer.state_dict()) / entries
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(options.rounds):
        random.shuffle(order)
        for name in order:
            times[name].append(1e3 * steps[name]())
    print(f"\n{entries:,} parameters in {len(parameters(millions, 'cpu'))} tensors\n")
    print("| optimizer | ms a step | quartiles | / AdamW | bytes a parameter |")
    print("| --- | --- | --- | --- | --- |")
    reference = statistics.median(times[REFERENCE])
    for name, found in times.items():
        low, middle, high = statistics.quantiles(found, n=4)
        cells = (name, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{middle / reference:.2f}")
        print(f"| {' | '.join(cells)} | {sizes[name]:.1f} |", flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="compiles the steps of outeropt.torch")
    parser.add_argument("--sizes", type=int, nargs="+", choices=NETWORKS, default=[1, 10], help="in millions")
    parser.add_argument("--rounds", type=int, default=30, help="steps of each that are timed (default 30)")
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU (default 2)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=[], help="names of rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random.seed(0)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor()
    how = "compiled" if options.compile else "eager"
    print(f"{machine or platform.machine()}, {options.threads} threads, torch {torch.__version__}, {how}")
    for millions in options.sizes:
        table(millions, options)


if __name__ == "__main__":
    main()
