"""How good an optimizer is by now: whole runs on validation tasks."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer
from outeropt.task import Task
from outeropt.training import train


# As a task's loss can be any multiple of its first one, and one bad task must not hide the others.
_LIMIT = 2.0


class Validation(eqx.Module):
    """Whole runs on some tasks, judged on their validation split.

    Attributes:
      tasks: the tasks, at least one.
      steps: inner steps of each run.
      seeds: runs per task, with seeds 0, 1, ...
      every: outer steps between validations.
      batches: minibatches of an evaluation.

    Raises:
      ConfigError: no task, two of one name, or a number below 1.
    """

    tasks: tuple[Task, ...]
    steps: int = eqx.field(static=True, default=1000)
    seeds: int = eqx.field(static=True, default=4)
    every: int = eqx.field(static=True, default=250)
    batches: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if not self.tasks:
            raise ConfigError("A validation needs at least one task.")
        names = [task.name for task in self.tasks]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"Two validation tasks are called {min(twice)}; scores are told by name.")
        for name in ("steps", "seeds", "every", "batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"validation.{name} = {getattr(self, name)}; it must be at least 1.")

    def scores(self, optimizer: Optimizer) -> dict[str, float]:
        """For each task the final validation loss as a share of the loss before the first step.

        The mean over seeds; smaller is better. A run that diverges has the largest share, 2.

        Returns:
          Shares by task name, and their mean as `"mean"`.
        """
        found = {task.name: float(jnp.mean(_shares(task, optimizer, self))) for task in self.tasks}
        return {**found, "mean": sum(found.values()) / len(found)}


@functools.partial(eqx.filter_jit)
def _shares(task: Task, optimizer: Optimizer, plan: Validation) -> Float[Array, " seeds"]:
    def one(seed):
        run = train(
            task,
            optimizer,
            steps=plan.steps,
            key=jax.random.key(seed),
            eval_every=plan.steps,
            eval_batches=plan.batches,
            last_eval_batches=plan.batches,
        )
        losses = run.curves["valid/loss"]
        share = losses[-1] / jnp.maximum(losses[0], 1e-8)
        return jnp.where(jnp.isfinite(share), jnp.minimum(share, _LIMIT), _LIMIT)

    return jax.vmap(one)(jnp.arange(plan.seeds))
