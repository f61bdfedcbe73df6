"""What two decisions about XLA's CPU compiler are worth: the form of convolutions, and LLVM's level.

    python benchmarks/compiler.py

First the gradient of two 3x3 convolutions, outside and inside a loop, before and after
`outeropt.training.convolution.install`; then compiling and running the sweep of an MLP at both levels.
"""

import sys
import time

import jax
import jax.numpy as jnp


def _outside_and_inside(count: int = 20) -> tuple[float, float]:
    """Seconds of one gradient, called from Python and from inside a compiled loop."""
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(keys[0], (128, 8, 8, 1))
    kernels = [
        0.1 * jax.random.normal(k, shape) for k, shape in zip(keys[1:], [(3, 3, 1, 16), (3, 3, 16, 32)])
    ]

    def convolve(x, kernel, stride):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=numbers)

    def gradient(images, *kernels):
        def loss(kernels):
            hidden = jax.nn.relu(convolve(images, kernels[0], 2))
            return jnp.sum(convolve(hidden, kernels[1], 1) ** 2)

        return jax.grad(loss)(kernels)

    def looped(times, images, *kernels):
        def body(_, total):
            inputs = [kernel + 0 * total for kernel in kernels]  # or XLA would lift the work out of the loop
            return total + sum(jnp.sum(leaf) for leaf in gradient(images, *inputs)) * 1e-9

        return jax.lax.fori_loop(0, times, body, jnp.float32(0))

    once, many = jax.jit(gradient), jax.jit(looped)
    jax.block_until_ready((once(images, *kernels), many(1, images, *kernels)))
    began = time.perf_counter()
    for _ in range(count):
        result = once(images, *kernels)
    jax.block_until_ready(result)
    middle = time.perf_counter()
    jax.block_until_ready(many(count, images, *kernels))
    return (middle - began) / count, (time.perf_counter() - middle) / count


def _convolutions() -> None:
    before = _outside_and_inside()
    from outeropt.training import convolution

    if not convolution.install():
        sys.exit("This version of JAX does not allow the rule.")
    jax.clear_caches()
    after = _outside_and_inside()
    print("\n| gradient of two convolutions | outside a loop | inside a loop |\n| --- | --- | --- |")
    for name, (outside, inside) in (("XLA's own", before), ("outeropt's form", after)):
        print(f"| {name} | {outside * 1e3:.2f} ms | {inside * 1e3:.2f} ms |")


def _levels() -> None:
    import equinox as eqx
    import numpy as np

    from outeropt import grid, optimizers, tasks
    from outeropt._sweep.lanes import _advance, blank
    from outeropt._sweep.plan import layout

    task = tasks.get("ImageMLP_Digits_Relu32")
    settings = grid(optimizers.get("adam"), learning_rate=list(np.logspace(-4, -2, 8)))
    block = layout(task, settings, range(4), "auto", jax.local_devices())
    settings = settings.select(range(block.settings))
    keys = jnp.stack([jax.random.key(seed) for seed in range(block.seeds)])
    print("\n| LLVM level | trace and compile | us a lane and step |\n| --- | --- | --- |")
    for level in (2, 1):
        program = eqx.filter_jit(
            _advance, donate="all-except-first", compiler_options={"xla_backend_optimization_level": level}
        )

        def call(windows, program=program):
            clock = jnp.asarray([0, windows, 10, 1000, 5, 10], jnp.int32)
            began = time.perf_counter()
            carry = blank(task, settings.stacked, block)
            jax.block_until_ready(program((task, settings.stacked, keys, clock), carry, block))
            return time.perf_counter() - began

        first, run = call(1), min(call(100) for _ in range(3))
        print(f"| {level} | {first:.1f} s | {run / 1000 / (block.settings * block.seeds) * 1e6:.1f} |")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    _convolutions()
    _levels()
