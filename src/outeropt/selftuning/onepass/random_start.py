"""Hyperparameters that every run draws for itself."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt import tree
from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, OptState, Params, resolve
from outeropt.optimizers.wrappers.base import Wrapper
from outeropt.space import Space


class RandomStartState(NamedTuple):
    """State of `RandomStart`.

    Attributes:
      inner: the inner optimizer's state.
      drawn: what was drawn, by full name.
    """

    inner: OptState
    drawn: dict[str, Float[Array, ""]]


Draws = tuple[tuple[str, Space], ...]


def _draws(given: Mapping[str, Space] | Draws) -> Draws:
    return tuple(given.items() if isinstance(given, Mapping) else given)


class RandomStart(Wrapper):
    """Draws leaves of the inner optimizer at the start of each run, from the run's own key.

    So restarts from random hyperparameters are seeds: `sweep(task, RandomStart(...), seeds=200)`. The draws
    depend on key, names and spaces alone, and are the same for every method that is tried.

    Attributes:
      inner: the optimizer inside.
      draws: where each leaf is drawn, uniformly on the space's scale, by name.

    Raises:
      UnknownName: the inner optimizer has no such leaf.
      OuteroptError: nothing is drawn, or (from `init`) there is no key.

    Examples:
      >>> import outeropt
      >>> from outeropt import Space, optimizers, tasks
      >>> from outeropt.selftuning import RandomStart
      >>> start = RandomStart(optimizers.get("sgd"), {"learning_rate": Space.log(1e-6, 1e-2)})
      >>> archive = outeropt.sweep(tasks.get("Quadratic_10"), start, seeds=3, steps=20, eval_every=20)
      >>> archive.curves["optimizer/learning_rate"].shape  # one setting, three starts
      (1, 3, 2)
    """

    inner: Optimizer
    draws: Draws = eqx.field(static=True, converter=_draws)

    def __check_init__(self):
        if not self.draws:
            raise OuteroptError("RandomStart draws nothing; give a space for at least one leaf.")
        self._names()

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        if key is None:
            raise OuteroptError("RandomStart draws hyperparameters and needs a key: init(params, key=...).")
        draw_key, inner_key = jax.random.split(key)
        # By the last part of the name: what is wrapped around the leaf must not change what it gets.
        drawn = {
            full: space.sample(jax.random.fold_in(draw_key, index), 1)[0]
            for index, ((_, space), full) in enumerate(zip(self.draws, self._names()))
        }
        inner = self._at(drawn).init(params, num_steps=num_steps, key=inner_key)
        return RandomStartState(inner, drawn)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        updates, inner = self._at(state.drawn).update(grads, state.inner, params, **context)
        return updates, state._replace(inner=inner)

    def inner_state(self, state: OptState) -> OptState:
        return state.inner

    def restart(
        self,
        state: OptState,
        params: Params,
        *,
        num_steps: int | Array | None = None,
        key: PRNGKeyArray | None = None,
    ) -> OptState:
        inner = self._at(state.drawn).restart(state.inner, params, num_steps=num_steps, key=key)
        return state._replace(inner=inner)

    def after(self, state: OptState) -> Optimizer:
        """The inner optimizer at what was drawn, after its run; it draws no more."""
        return self._at(state.drawn).after(state.inner)

    def task_settings(self, state: OptState) -> dict[str, Array]:
        return self._at(state.drawn).task_settings(state.inner)

    def diagnostics(self, state: OptState) -> dict[str, Array]:
        """What was drawn, by the last part of its name, or where the inner optimizer says that it is now."""
        told = self._at(state.drawn).diagnostics(state.inner)
        now = {full.split(".")[-1]: value for full, value in told.items() if not full.startswith("meta.")}
        drawn = {full.split(".")[-1]: value for full, value in state.drawn.items()}
        return {**told, **drawn, **{name: now[name] for name in drawn if name in now}}

    def _names(self) -> list[str]:
        leaves = self.inner.hyperparameters
        # What trains the parameters is meant, not the optimizer that tunes it.
        trained = [name for name in leaves if set(name.split(".")[:-1]) <= {"inner", "base"}]
        return [resolve(name, trained if _ends(name, trained) else leaves) for name, _ in self.draws]

    def _at(self, drawn: Mapping[str, Array]) -> Optimizer:
        return tree.with_leaves(self.inner, drawn)


def _ends(name: str, leaves: Sequence[str]) -> bool:
    return any(leaf == name or leaf.endswith(f".{name}") for leaf in leaves)
