"""Optimizers of JAX on Keras's JAX backend: their state lies in Keras variables."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from outeropt import learned, optimizers, tree
from outeropt.errors import OuteroptError
from outeropt.keras.engines import Engine, full_name, needs_more


class JaxEngine(Engine):
    """The leaves of the optimizer's state as Keras variables, and a step that Keras's compiled one traces.

    Keras's learning rate takes the place of the leaf `learning_rate`, if there is one of that name, and else
    multiplies the updates.
    """

    @staticmethod
    def names() -> list[str]:
        return optimizers.names()

    def __init__(self, name: str, num_steps: int | None, settings: Mapping[str, Any]):
        super().__init__(full_name(name, self.names()), num_steps, settings)
        word, _, rest = self.name.partition(":")
        if word == "learned" and self.settings:
            self.optimizer = learned.load(rest).with_settings(**self.settings)
        else:
            self.optimizer = optimizers.get(self.name, **self.settings)
        rates = [leaf for leaf in self.optimizer.hyperparameters if leaf.split(".")[-1] == "learning_rate"]
        scalar = len(rates) == 1 and self.optimizer.hyperparameters[rates[0]].ndim == 0
        self.rate = rates[0] if scalar else None

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.hyperparameters[self.rate]) if self.rate else 1.0

    def build(self, owner: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> None:
        self.variables, self.owner = list(variables), owner
        values = [variable.value for variable in variables]
        optimizer = self._at(owner.learning_rate)
        state = optimizer.init(values, num_steps=self.num_steps, key=jax.random.key(0))
        leaves, self.structure = jax.tree.flatten(state)
        self.keys = [jax.random.key_impl(leaf) if _is_key(leaf) else None for leaf in leaves]
        try:
            jax.eval_shape(lambda *given: self._update(optimizer, *given), values, values, state, 0)
        except OuteroptError as error:
            raise needs_more(self.name, error) from error
        self.state = []
        for index, leaf in enumerate(leaves):
            # A copy of its own: a state may begin with the parameters themselves.
            array = np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
            variable = owner.add_variable(array.shape, dtype=array.dtype.name, name=f"state_{index}")
            variable.assign(array)
            self.state.append(variable)

    def step(self, grads: Sequence[Any], variables: Sequence[keras.Variable], learning_rate: Any) -> None:
        given = {id(variable): grad for variable, grad in zip(variables, grads)}
        values = [variable.value for variable in self.variables]
        # A tree has no holes: what has no gradient has a zero one, and stays.
        whole = [given.get(id(v), jnp.zeros_like(value)) for v, value in zip(self.variables, values)]
        rate = jnp.asarray(keras.ops.convert_to_tensor(learning_rate))
        # Under accumulation of gradients, `iterations` counts the updates.
        step = jnp.asarray(keras.ops.convert_to_tensor(self.owner.iterations))
        updates, state = self._update(self._at(rate), whole, values, self._state(), step)
        for variable, value, update in zip(self.variables, values, updates):
            if id(variable) in given:
                update = update if self.rate else update * rate.astype(update.dtype)
                variable.assign(value + update)
        for variable, leaf, key in zip(self.state, jax.tree.leaves(state), self.keys):
            variable.assign(leaf if key is None else jax.random.key_data(leaf))

    def swap(self) -> list[Any]:
        kept = [variable.value for variable in self.variables]
        for variable, value in zip(self.variables, self.optimizer.eval_params(self._state(), kept)):
            variable.assign(value)
        return kept

    def swap_back(self, kept: list[Any]) -> None:
        for variable, value in zip(self.variables, kept):
            variable.assign(value)

    def _at(self, learning_rate: Any) -> Any:
        """The optimizer with a learning rate."""
        if self.rate is None:
            return self.optimizer
        return tree.with_leaves(self.optimizer, {self.rate: keras.ops.convert_to_tensor(learning_rate)})

    def _state(self) -> Any:
        leaves = [
            variable.value if key is None else jax.random.wrap_key_data(variable.value, impl=key)
            for variable, key in zip(self.state, self.keys)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def _update(self, optimizer: Any, grads: Any, values: Any, state: Any, step: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(1), step)
        return optimizer.update(grads, state, values, grad=grads, step=step, key=key)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
