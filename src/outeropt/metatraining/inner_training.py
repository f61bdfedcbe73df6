"""Training a task with an optimizer, as a system that estimators unroll; theta is the optimizer."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from outeropt.errors import ConfigError
from outeropt.metatraining.system import Outcome, System
from outeropt.task import TaskFamily
from outeropt.training import TrainState, inner_step, start


MetaLoss = Literal["train", "valid", "test"]
Unit = Literal["share", "log"]


class State(eqx.Module):
    """What changes from step to step, the loss before the first one, and the first step that counts."""

    train: TrainState
    first_loss: Float[Array, ""]
    counts_from: Int[Array, ""]


class InnerTraining(System):
    """Inner steps on tasks of one family. The meta-loss is the loss as a share of the loss at the start.

    Shares make tasks of different units comparable. A share above `limit`, or one that is not a number,
    counts as `limit`: an optimizer that diverges is as bad as that, and no worse.

    The logarithm of the share weighs relative improvements alike, early and late, where the share itself
    mostly sees the first steps.

    What is judged by its end should be learned on its end: with `since`, losses count from a share of each
    trajectory on. PES still credits them to all that happened before.

    Attributes:
      family: where tasks come from.
      meta_loss: `"train"` takes the loss that the step computes anyway, on its minibatch before the update;
        a held-out split takes the loss on a minibatch of it after the update.
      unit: `"share"`, or its logarithm, `"log"`.
      limit: largest share, above 1.
      since: share of each trajectory before which losses do not count, in [0, 1).

    Raises:
      ConfigError: the meta-loss or its unit is unknown, the limit is not above 1, or `since` is out of range.
    """

    family: TaskFamily
    meta_loss: MetaLoss = eqx.field(static=True, default="train")
    unit: Unit = eqx.field(static=True, default="share")
    limit: float = eqx.field(static=True, default=1.5)
    since: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        if self.meta_loss not in ("train", "valid", "test"):
            raise ConfigError(f"Meta-loss {self.meta_loss!r} is unknown; it is train, valid or test.")
        if self.unit not in ("share", "log"):
            raise ConfigError(f"Unit {self.unit!r} of the meta-loss is unknown; it is share or log.")
        if not self.limit > 1:
            raise ConfigError(f"The limit of the meta-loss is {self.limit}; it must be above 1.")
        if not 0 <= self.since < 1:
            raise ConfigError(
                f"Losses cannot count since {self.since} of a trajectory; give a share from 0 to below 1."
            )

    def draw(self, key) -> PyTree:
        """Which task of the family."""
        return self.family.sample(key)

    def init(self, theta, setup, length, key) -> State:
        """Initial parameters, the optimizer's state, and the loss on one minibatch."""
        task = self.family.task(setup)
        state = start(task, theta, key, num_steps=length)
        batch_key, loss_key = jax.random.split(key)
        loss, _ = task.loss(state.params, state.model, task.batch("train", batch_key), loss_key)
        # Below the length, so that at least the last step counts.
        share = jnp.asarray(length, jnp.float32) * self.since
        counts_from = jnp.minimum(share.astype(jnp.int32), length - 1)
        return State(state, jnp.maximum(loss.astype(jnp.float32), 1e-8), counts_from)

    def step(self, theta, setup, state: State, step, key) -> tuple[State, Outcome]:
        """One inner step and its share."""
        task = self.family.task(setup)
        train, loss = inner_step(task, theta, state.train, step, key)
        if self.meta_loss != "train":
            params = theta.eval_params(train.opt, train.params)
            batch = task.batch(self.meta_loss, jax.random.fold_in(key, 1))
            loss, _ = task.loss(params, train.model, batch, None)
        share = loss.astype(jnp.float32) / state.first_loss
        share = jnp.where(jnp.isfinite(share), jnp.minimum(share, self.limit), self.limit)
        # A loss of zero has no logarithm.
        value = share if self.unit == "share" else jnp.log(jnp.maximum(share, 1e-6))
        counts = step >= state.counts_from
        return State(train, state.first_loss, state.counts_from), Outcome(value, counts)
