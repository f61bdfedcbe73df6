"""How much longer the step of a learned optimizer takes than Adam's, in PyTorch.

    python benchmarks/torch_learned_step.py                              # prints a Markdown table
    python benchmarks/torch_learned_step.py --side 4096 --device cuda --compile

On one square tensor and on the tensors of a small transformer. All take turns in one process; times are
medians, and in brackets the least. The reference is AdafacMLP's step as it was published: one array
`[parameters, 39]` of all features of all parameters, and matrix products with it.
"""

import argparse
import functools
import platform
import statistics
import time

import torch

import outeropt.torch
from outeropt.torch.learned import moments


WIDTH, LAYERS = 128, 4
TRANSFORMER = ((512, WIDTH), *((WIDTH, 4 * WIDTH), (4 * WIDTH,), (4 * WIDTH, WIDTH), (WIDTH,)) * LAYERS)


def as_published(optimizer, param, grad, state, count, factor):
    """The step of one tensor with all features and the time written down for all of it."""
    network = optimizer.network(param)
    moments.advance_factored(state, grad, network.decays)
    sources = moments.Sources.of(grad, param, state)
    sources.advance(network.decays)
    full = sources.full(param.new_empty(moments.FULL * param.numel()))
    sides = [side.expand(-1, *param.shape).reshape(moments.SIDE, -1) for side in sources.sides()]
    made = torch.cat([full, sides[0], sides[-1]])
    made = made * torch.rsqrt(1e-5 + made.square().mean(dim=1, keepdim=True))
    now = moments.tanh_embedding(count, network.scales)
    units = torch.cat([made, now[:, None].expand(-1, made.shape[1])]).T.contiguous()
    (first, start), *rest = network.layers
    units = torch.addmm(start.T, units, torch.cat([first, network.time], dim=1).T)
    for weight, bias in rest:
        units = torch.addmm(bias.T, units.relu(), weight.T)
    step = optimizer.finish(units.T.contiguous().view(-1, *param.shape), sources, ())
    param.addcmul_(step, factor)


def published(params):
    """`small_fc` with that step."""
    optimizer = outeropt.torch.load("small_fc", params, num_steps=10**6)
    optimizer.move_tensor = functools.partial(as_published, optimizer)
    return optimizer


CONTENDERS = {
    "Adam": lambda params: torch.optim.Adam(params),
    "small_fc": lambda params: outeropt.torch.load("small_fc", params, num_steps=10**6),
    "small_fc, as published": published,
    "mlp_nominal": lambda params: outeropt.torch.load("mlp_nominal", params, num_steps=10**6),
    "amalgam-mean-1": lambda params: outeropt.torch.load("amalgam-mean-1", params, warmup_steps=0),
    "prodigy": lambda params: outeropt.torch.get("prodigy", params),
}


def measure(shapes, arguments) -> dict[str, list[float]]:
    """Seconds of each repeat by name."""
    steps, found = {}, {name: [] for name in CONTENDERS}
    for name, make in CONTENDERS.items():
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, device=arguments.device) * 0.1) for shape in shapes]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer = make(params)
        optimizer.step()
        steps[name] = torch.compile(optimizer.step) if arguments.compile else optimizer.step
    for repeat in range(arguments.repeats + 2):  # the first two warm up, and compile
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if arguments.device != "cpu":
                torch.cuda.synchronize()
            if repeat > 1:
                found[name].append(time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=1024, help="of the square tensor")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="steps by torch.compile")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = torch.cuda.get_device_name() if arguments.device != "cpu" else platform.processor()
    print(f"torch {torch.__version__}, {machine}, {arguments.threads} threads\n")
    for title, shapes in (("one tensor", [(arguments.side,) * 2]), ("a transformer", TRANSFORMER)):
        count = sum(torch.Size(shape).numel() for shape in shapes)
        print(f"| {title}, {count:,} parameters | ms | times Adam |\n|---|---|---|")
        times = measure(shapes, arguments)
        adam = statistics.median(times["Adam"])
        for name, seconds in times.items():
            middle = statistics.median(seconds)
            print(f"| {name} | {1e3 * middle:.2f} ({1e3 * min(seconds):.2f}) | {middle / adam:.1f} |")
        print()


if __name__ == "__main__":
    main()
