"""Controllers: how coefficients `M_0, M_1, ...` act on the disturbances of this step and the ones before.

A controller adds `sum_i M_i w_{t-i}` to step `t`. The classes differ in what a coefficient is; the
coefficients themselves are a pytree that `zeros` starts, and all of them keep the axis of ages first.
"""

import abc
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from outeropt import tree
from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import wide_type
from outeropt.selftuning.control.history import History


class Controller(eqx.Module):
    """What a coefficient is. Subclasses are final and have no arrays.

    Attributes:
      memory: number `H` of coefficients, at least 1.
    """

    memory: int = eqx.field(static=True)

    @abc.abstractmethod
    def zeros(self, params: Params) -> PyTree:
        """Coefficients that do nothing."""

    @abc.abstractmethod
    def play(self, coefficients: PyTree, history: History, age: int | Array = 0) -> Params:
        """`sum_i M_i w_{s-i}`, where `w_s` is the row of the given age: `w_t` itself, unless told."""

    @abc.abstractmethod
    def along(self, history: History, grads: Params, kept: Array, horizon: int) -> PyTree:
        """The gradient of `f_t` along the real trajectory, GAPS with `horizon` terms.

        `x_t` depends on `M_i` by `a_i = sum_{b < horizon} kept^b w_{t-1-b-i}`: that, times the gradient at
        `x_t` (Lin et al., "Online Adaptive Policy Selection in Time-Varying Systems", 2023, arXiv
        2210.12320, algorithm 1, for the dynamics `x' = kept x + sum_i M_i w_i`).

        Args:
          history: disturbances up to `w_{t-1}`, at least `memory + horizon - 1` rows of them.
          grads: gradient of `f_t` at `x_t`.
          kept: what a step leaves of the parameters, `1 - weight_decay`.
          horizon: how many past steps count, at least 1.
        """

    @abc.abstractmethod
    def summary(self, coefficients: PyTree) -> Float[Array, " H"]:
        """One number for each age: the coefficient, or the mean of its entries."""

    @abc.abstractmethod
    def project(self, coefficients: PyTree, limits: Float[Array, " H"]) -> PyTree:
        """The nearest coefficients whose norms are at most `limits`."""


class Scalar(Controller):
    """One number for each age: a filter that all parameters share. `M` has shape (H,)."""

    def zeros(self, params: Params) -> Float[Array, " H"]:
        return jnp.zeros(self.memory, wide_type(params))

    def play(self, coefficients: Float[Array, " H"], history: History, age: int | Array = 0) -> Params:
        return history.weighted(jax.tree.map(lambda _: coefficients, history.rows), age)

    def along(self, history: History, grads: Params, kept: Array, horizon: int) -> Float[Array, " H"]:
        products = [leaf.astype(wide_type(grads)) for leaf in history.products(grads)]
        return _summed(functools.reduce(jnp.add, products), kept, self.memory, horizon)

    def summary(self, coefficients: Float[Array, " H"]) -> Float[Array, " H"]:
        return coefficients

    def project(self, coefficients: Float[Array, " H"], limits: Float[Array, " H"]) -> PyTree:
        return jnp.clip(coefficients, -limits, limits)


class PerTensor(Controller):
    """One number for each age and parameter tensor. `M` has the parameters' structure, leaves (H,)."""

    def zeros(self, params: Params) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.zeros(self.memory, wide_type(leaf)), params)

    def play(self, coefficients: PyTree, history: History, age: int | Array = 0) -> Params:
        return history.weighted(coefficients, age)

    def along(self, history: History, grads: Params, kept: Array, horizon: int) -> PyTree:
        products = history.products(grads)
        found = [_summed(leaf, kept, self.memory, horizon) for leaf in products]
        return jax.tree.unflatten(jax.tree.structure(grads), found)

    def summary(self, coefficients: PyTree) -> Float[Array, " H"]:
        return _mean(coefficients)

    def project(self, coefficients: PyTree, limits: Float[Array, " H"]) -> PyTree:
        return jax.tree.map(lambda leaf: _clipped(leaf, limits), coefficients)


class Diagonal(Controller):
    """One number for each age and parameter. `M` has the parameters' structure, leaves (H, *shape)."""

    def zeros(self, params: Params) -> PyTree:
        return jax.tree.map(lambda leaf: tree.zeros_beside(leaf, self.memory, dtype=wide_type(leaf)), params)

    def play(self, coefficients: PyTree, history: History, age: int | Array = 0) -> Params:
        rows = history.newest(self.memory, age)
        return jax.tree.map(lambda m, w: jnp.sum(m * w.astype(m.dtype), axis=0), coefficients, rows)

    def along(self, history: History, grads: Params, kept: Array, horizon: int) -> PyTree:
        def one(grad, rows):
            dtype = wide_type(grad)
            reach = _summed(rows.astype(dtype), kept, self.memory, horizon)
            return grad.astype(dtype)[None] * reach

        return jax.tree.map(one, grads, history.newest(self.memory + horizon - 1))

    def summary(self, coefficients: PyTree) -> Float[Array, " H"]:
        return _mean(coefficients)

    def project(self, coefficients: PyTree, limits: Float[Array, " H"]) -> PyTree:
        return jax.tree.map(lambda leaf: _clipped(leaf, limits), coefficients)


class Full(Controller):
    """A matrix over all parameters for each age. `M` has shape (H, n, n): for tiny models only."""

    def zeros(self, params: Params) -> Float[Array, "H n n"]:
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        return jnp.zeros((self.memory, size, size), wide_type(params))

    def play(self, coefficients: Float[Array, "H n n"], history: History, age: int | Array = 0) -> Params:
        rows = history.newest(self.memory, age)
        flat = jax.vmap(lambda row: ravel_pytree(row)[0])(rows)
        mixed = jnp.einsum("hmn,hn->m", coefficients, flat.astype(coefficients.dtype))
        _, back = ravel_pytree(jax.tree.map(lambda leaf: leaf[0].astype(coefficients.dtype), rows))
        return back(mixed)

    def along(self, history: History, grads: Params, kept: Array, horizon: int) -> Float[Array, "H n n"]:
        dtype = wide_type(grads)
        rows = jax.vmap(lambda row: ravel_pytree(row)[0])(history.newest(self.memory + horizon - 1))
        reach = _summed(rows.astype(dtype), kept, self.memory, horizon)
        return jnp.einsum("m,hn->hmn", ravel_pytree(grads)[0].astype(dtype), reach)

    def summary(self, coefficients: Float[Array, "H n n"]) -> Float[Array, " H"]:
        return jnp.mean(jnp.diagonal(coefficients, axis1=1, axis2=2), axis=1)

    def project(self, coefficients: Float[Array, "H n n"], limits: Float[Array, " H"]) -> PyTree:
        norms = jnp.sqrt(jnp.sum(jnp.square(coefficients), axis=(1, 2)))
        return coefficients * jnp.minimum(1.0, limits / jnp.maximum(norms, 1e-30))[:, None, None]


CONTROLLERS: dict[str, type[Controller]] = {
    "scalar": Scalar,
    "per_tensor": PerTensor,
    "diagonal": Diagonal,
    "full": Full,
}


def _summed(by_age: Float[Array, "ages *shape"], kept: Array, memory: int, horizon: int) -> Array:
    """`sum_{b < horizon} kept^b by_age[b + i]` for each `i < memory`."""
    kept = kept.astype(by_age.dtype)
    terms, factor = by_age[:memory], kept
    for b in range(1, horizon):
        terms, factor = terms + factor * by_age[b : b + memory], factor * kept
    return terms


def _mean(coefficients: PyTree) -> Float[Array, " H"]:
    """Mean over all entries of the same age."""
    leaves = jax.tree.leaves(coefficients)
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
    size = sum(leaf.shape[1] for leaf in flat)
    return functools.reduce(jnp.add, [jnp.sum(leaf, axis=1) for leaf in flat]) / size


def _clipped(leaf: Float[Array, "H *shape"], limits: Float[Array, " H"]) -> Array:
    bound = limits.astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.clip(leaf, -bound, bound)
