"""Any optimizer as a Keras optimizer on the JAX backend: state in Keras variables, updates in Keras's step.

A step sees all parameters at once, as a list in the order of the model's trainable variables.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jaxtyping import Array, PyTree

from outeropt import learned, optimizers, tree
from outeropt.errors import OuteroptError, UnknownName
from outeropt.keras.base import KerasOptimizer, needs_more
from outeropt.optimizer import Optimizer as Inner
from outeropt.optimizer import evaluates_apart, resolve


@keras.saving.register_keras_serializable(package="outeropt", name="Optimizer")
class Optimizer(KerasOptimizer):
    """An optimizer of `outeropt.optimizers` as a Keras optimizer; see `load` for its arguments."""

    def __init__(
        self,
        method: str,
        learning_rate: Any = None,
        *,
        num_steps: int | None = None,
        seed: int = 0,
        hyperparameters: Mapping[str, Any] | None = None,
        **settings: Any,
    ):
        own = dict(hyperparameters or {})
        inner = optimizers.get(_full(method), **own)
        if settings.get("weight_decay") is not None and _leaf(inner, "weight_decay"):
            own["weight_decay"] = settings.pop("weight_decay")
            inner = inner.replace(weight_decay=own["weight_decay"])
        rate = _leaf(inner, "learning_rate")
        if learning_rate is None:
            learning_rate = float(inner.hyperparameters[rate]) if rate else 1.0
        elif rate and isinstance(learning_rate, int | float):
            inner = inner.replace({rate: learning_rate})
        _check(method, inner, num_steps)
        super().__init__(
            method, learning_rate, num_steps=num_steps, seed=seed, hyperparameters=own, **settings
        )
        self._inner = inner
        self._rate = rate

    def build(self, variables: Any) -> None:
        """Makes the variables that hold the state."""
        if self.built:
            return
        super().build(variables)
        state = self._start()
        leaves, self._structure = jax.tree.flatten(state)
        self._generators = tuple(_generator(leaf) for leaf in leaves)
        self._leaves = [
            self._variable(name, leaf) for name, leaf in zip(tree.named_leaves(state), self._plain(state))
        ]
        params = [variable.value for variable in self.moved()]
        self._training_point = []
        if evaluates_apart(self._inner, state, params):
            self._training_point = self.add_optimizer_variables(self.moved(), "training_point")
            self._apart = self.add_variable(shape=(), dtype="bool", name="at_evaluation_point")

    def _variable(self, name: str, value: Array) -> Any:
        start: Any = lambda shape, dtype: value  # noqa: E731
        name = name.replace("/", "_") or "state"
        return self.add_variable(shape=value.shape, initializer=start, dtype=str(value.dtype), name=name)

    def _start(self) -> PyTree:
        """The state before the first step, in new arrays: Keras gives up the buffers of its variables."""
        params = [variable.value for variable in self.moved()]
        state = self._now(self.learning_rate)[0].init(
            params, num_steps=self.num_steps, key=jax.random.key(self.seed)
        )
        return jax.tree.map(jnp.copy, state)

    def _plain(self, state: PyTree) -> list[Array]:
        """The leaves of a state, PRNG keys as numbers."""
        return [
            jax.random.key_data(leaf) if generator else leaf
            for leaf, generator in zip(jax.tree.leaves(state), self._generators)
        ]

    def _state(self) -> PyTree:
        values = [
            jax.random.wrap_key_data(leaf.value, impl=generator) if generator else leaf.value
            for leaf, generator in zip(self._leaves, self._generators)
        ]
        return jax.tree.unflatten(self._structure, values)

    def _now(self, learning_rate: Any) -> tuple[Inner, Array | None]:
        """The optimizer with Keras's learning rate, and the factor on its updates if it has no such leaf."""
        rate = jnp.asarray(keras.ops.convert_to_tensor(learning_rate))
        if self._rate is None:
            return self._inner, rate
        # Unchecked: a schedule may leave the leaf's space on its way.
        return tree.with_leaves(self._inner, {self._rate: rate}), None

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        given = {id(variable): grad for variable, grad in zip(trainable_variables, grads)}
        variables = self.moved()
        params = [variable.value for variable in variables]
        # A variable that the loss does not know of has no gradient, and stays where it is.
        gradients = [
            given[id(variable)].astype(param.dtype) if id(variable) in given else jnp.zeros_like(param)
            for variable, param in zip(variables, params)
        ]
        step = jnp.asarray(keras.ops.convert_to_tensor(self.iterations))
        inner, factor = self._now(learning_rate)
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        updates, state = inner.update(gradients, self._state(), params, grad=gradients, key=key, step=step)
        for variable, param, update in zip(variables, params, updates):
            if id(variable) in given:
                move = update if factor is None else update * factor.astype(update.dtype)
                variable.assign(param + move.astype(param.dtype))
        for leaf, value in zip(self._leaves, self._plain(state)):
            leaf.assign(value)

    def eval(self) -> None:
        if not self.built or not self._training_point:
            return
        variables, apart = self.moved(), self._apart.value
        params = [variable.value for variable in variables]
        point = _evaluation_point(self._now(self.learning_rate)[0], self._state(), params)
        for variable, kept, param, value in zip(variables, self._training_point, params, point):
            kept.assign(jnp.where(apart, kept.value, param))
            variable.assign(jnp.where(apart, param, value))
        self._apart.assign(True)

    def train(self) -> None:
        if not self.built or not self._training_point:
            return
        # Without a branch in Python: this is also part of Keras's compiled step.
        for variable, kept in zip(self.moved(), self._training_point):
            variable.assign(jnp.where(self._apart.value, kept.value, variable.value))
        self._apart.assign(False)

    def load_own_variables(self, store: Any) -> None:
        """Sets the state to a saved one; if none had begun, it begins at the model's weights."""
        begun = len(store.keys()) == len(self.variables)
        super().load_own_variables(store)
        if self.built and not begun:
            for leaf, value in zip(self._leaves, self._plain(self._start())):
                leaf.assign(value)


@jax.jit
def _evaluation_point(inner: Inner, state: PyTree, params: list[Array]) -> list[Array]:
    return inner.eval_params(state, params)


def _full(method: str) -> str:
    """The name that `outeropt.optimizers` knows."""
    return f"learned:{method}" if method in learned.names() else method


def _leaf(inner: Inner, name: str) -> str | None:
    """The full name of the only scalar leaf that is called so."""
    leaves = inner.hyperparameters
    try:
        full = resolve(name, leaves)
    except UnknownName:
        return None
    return full if leaves[full].ndim == 0 else None


def _generator(leaf: Any) -> str | None:
    """The name of the generator of a PRNG key; None for other leaves."""
    return str(jax.random.key_impl(leaf)) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else None


def _check(method: str, inner: Inner, num_steps: int | None) -> None:
    """Traces a step of a small model, so that what an optimizer lacks is said when it is made.

    Raises:
      OuteroptError: it needs more than gradients, or the length of the run.
    """
    key = jax.random.key(0)
    params = [jnp.ones((2, 3)), jnp.ones(3)]
    state = jax.eval_shape(lambda: inner.init(params, num_steps=num_steps, key=key))
    try:
        jax.eval_shape(
            lambda state: inner.update(params, state, params, grad=params, key=key, step=jnp.int32(0)), state
        )
    except OuteroptError as error:
        raise needs_more(method, error) from None
