"""What wrappers share: an optimizer inside, whose leaves, spaces and evaluation point show through."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.space import Space


class Wrapper(Optimizer):
    """An optimizer around another one. Leaves of the inner one are called `inner.learning_rate` and so on.

    Subclasses that keep a state of their own put the inner one in its field `inner` and say so in
    `inner_state`.
    """

    inner: eqx.AbstractVar[Optimizer]

    own_spaces: ClassVar[dict[str, Space]] = {}
    """Spaces of the wrapper's own leaves."""

    def inner_state(self, state: OptState) -> OptState:
        """The inner optimizer's part of the state."""
        return state

    def eval_params(self, state: OptState, params: Params) -> Params:
        return self.inner.eval_params(self.inner_state(state), params)

    def restart(
        self,
        state: OptState,
        params: Params,
        *,
        num_steps: int | Array | None = None,
        key: PRNGKeyArray | None = None,
    ) -> OptState:
        fresh = self.init(params, num_steps=num_steps, key=key)
        inner = self.inner.restart(self.inner_state(state), params, num_steps=num_steps, key=key)
        return inner if self.inner_state(fresh) is fresh else fresh._replace(inner=inner)

    def after(self, state: OptState) -> Optimizer:
        return eqx.tree_at(lambda wrapper: wrapper.inner, self, self.inner.after(self.inner_state(state)))

    def diagnostics(self, state: OptState) -> dict[str, Array]:
        return self.inner.diagnostics(self.inner_state(state))

    @property
    def gradients(self) -> float:
        return self.inner.gradients

    @property
    def rhythm(self) -> int:
        return self.inner.rhythm

    def task_settings(self, state: OptState) -> dict[str, Array]:
        return self.inner.task_settings(self.inner_state(state))

    @property
    def spaces(self) -> dict[str, Space]:
        return {**self.own_spaces, **prefixed("inner", self.inner.spaces)}


def prefixed(prefix: str, spaces: dict[str, Space]) -> dict[str, Space]:
    """Spaces by the names that leaves have one level further out."""
    return {f"{prefix}.{name}": space for name, space in spaces.items()}


def scale(factor: Float[Array, ""], values: PyTree) -> PyTree:
    """`factor * values`, in the types of `values`."""
    return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, values)


def add_scaled(values: PyTree, factor: Float[Array, ""], other: PyTree) -> PyTree:
    """`values + factor * other`, in the types of `values`."""
    return jax.tree.map(
        lambda leaf, extra: leaf + (factor.astype(extra.dtype) * extra).astype(leaf.dtype), values, other
    )


def squared_norm(values: PyTree) -> Float[Array, ""]:
    """Sum of squares of all entries, in float32."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(values)]
    return jnp.sum(jnp.stack(squares)) if squares else jnp.zeros((), jnp.float32)


def norm(values: PyTree) -> Float[Array, ""]:
    """Euclidean norm of all entries together; its gradient at zero is zero."""
    square = squared_norm(values)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def ratio(numerator: Float[Array, ""], denominator: Float[Array, ""]) -> Float[Array, ""]:
    """The quotient, or 0 where the denominator is 0."""
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 0.0)
