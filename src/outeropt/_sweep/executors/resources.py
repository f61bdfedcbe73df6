"""What a chunk needs of a machine."""

from typing import NamedTuple

import equinox as eqx
import jax

from outeropt._sweep.job import Work
from outeropt._sweep.plan import state_bytes


# Python, JAX and a compiled program, and what a step holds beside the state: measured on small tasks.
_BASE_BYTES = 2**30
_STATES = 6


class Resources(NamedTuple):
    """What a chunk needs of a machine.

    Attributes:
      cores: processor cores; without GPUs, JAX gets one device for each.
      gpus: GPUs; JAX gets each as a device, and half of one for 0.5.
      memory: bytes of main memory; None for what `memory_of` estimates.
    """

    cores: int = 1
    gpus: float = 0
    memory: int | None = None

    @property
    def platform(self) -> str:
        """Of the devices that JAX gets."""
        return "gpu" if self.gpus else "cpu"

    @property
    def devices(self) -> int:
        """How many devices JAX gets."""
        return max(1, int(self.gpus)) if self.gpus else self.cores


def memory_of(work: Work) -> int:
    """Bytes of main memory for a chunk: the task's data for each device, and some copies of the state."""
    data = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(work.task, eqx.is_array)))
    lanes = work.block.settings * work.block.seeds
    states = _STATES * lanes * state_bytes(work.task, work.settings[0])
    return _BASE_BYTES + len(work.block.devices) * data + states
