"""Perturbations of a student's weights while it is trained, for students that differ less from seed to seed.

Huang et al. 2022, arXiv 2203.06474, section 3.4: gradients are taken at `W + d`, and the step is made from W.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.arithmetic import root


def _positive(name: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, int | float) and not 0 < value < float("inf"):
            raise ConfigError(f"{name} of a perturbation is {value}; give a positive number.")
        return jnp.asarray(value, jnp.float32)

    return convert


class Perturbation(eqx.Module):
    """What happens to a student's weights or inputs; nothing, where a subclass does not say.

    Its numbers are leaves.

    Attributes:
      attacks: how often the gradient with respect to d is taken before an outer step; each costs an unroll
        with its gradient.
    """

    @property
    def attacks(self) -> int:
        """How often `climb` is called before a step on the student."""
        return 0

    def start(self, student: Optimizer, key: PRNGKeyArray) -> PyTree:
        """d at the beginning of an unroll, shaped as the student."""
        del key
        return jax.tree.map(jnp.zeros_like, student)

    def climb(self, student: Optimizer, offset: PyTree, gradient: PyTree) -> PyTree:
        """The next d, given the gradient of the loss with respect to it."""
        del student, gradient
        return offset

    def at_step(self, student: Optimizer, key: PRNGKeyArray) -> Optimizer:
        """The student in one inner step."""
        del key
        return student

    def on_gradients(self, grads: Params, key: PRNGKeyArray) -> Params:
        """The gradients that it sees in one inner step."""
        del key
        return grads


class Unperturbed(Perturbation):
    """None."""


class FGSM(Perturbation):
    """`d = step_size sign(gradient)`: one step up, equally far for all weights (Goodfellow et al. 2015)."""

    step_size: Float[Array, ""] = eqx.field(converter=_positive("step_size"), default=1e-3)

    @property
    def attacks(self) -> int:
        return 1

    def climb(self, student: Optimizer, offset: PyTree, gradient: PyTree) -> PyTree:
        return jax.tree.map(lambda d, g: d + self.step_size * jnp.sign(g), offset, gradient)


class PGD(Perturbation):
    """`d <- d + magnitude |W| g / |g|` for each tensor, `steps` times: the paper's equation 6.

    A tensor whose gradient is 0 keeps its d.
    """

    magnitude: Float[Array, ""] = eqx.field(converter=_positive("magnitude"), default=1e-3)
    steps: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        _check_steps(self.steps)

    @property
    def attacks(self) -> int:
        return self.steps

    def climb(self, student: Optimizer, offset: PyTree, gradient: PyTree) -> PyTree:
        def one(w, d, g):
            size = _norm(g)
            return d + self.magnitude * _norm(w) * g / jnp.where(size > 0, size, 1.0)

        return jax.tree.map(one, student, offset, gradient)


class ClippedPGD(Perturbation):
    """`d <- d + g` with g clipped to the norm `magnitude |W|`, for each tensor, `steps` times.

    What the published code calls CGD.
    """

    magnitude: Float[Array, ""] = eqx.field(converter=_positive("magnitude"), default=1e-3)
    steps: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        _check_steps(self.steps)

    @property
    def attacks(self) -> int:
        return self.steps

    def climb(self, student: Optimizer, offset: PyTree, gradient: PyTree) -> PyTree:
        def one(w, d, g):
            return d + _shortened(g, self.magnitude * _norm(w))

        return jax.tree.map(one, student, offset, gradient)


class ProjectedPGD(Perturbation):
    """`d <- projection(d + learning_rate g)`, `steps` times (Madry et al. 2018, arXiv 1706.06083).

    Attributes:
      magnitude: bound of each entry (`norm = "inf"`) or of the norm of each tensor (`"l2"`).
    """

    magnitude: Float[Array, ""] = eqx.field(converter=_positive("magnitude"), default=1e-4)
    learning_rate: Float[Array, ""] = eqx.field(converter=_positive("learning_rate"), default=0.1)
    norm: Literal["inf", "l2"] = eqx.field(static=True, default="inf")
    steps: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        _check_steps(self.steps)
        if self.norm not in ("inf", "l2"):
            raise ConfigError(f"norm = {self.norm!r} of a perturbation is unknown; it is inf or l2.")

    @property
    def attacks(self) -> int:
        return self.steps

    def climb(self, student: Optimizer, offset: PyTree, gradient: PyTree) -> PyTree:
        def one(d, g):
            moved = d + self.learning_rate * g
            if self.norm == "inf":
                return jnp.clip(moved, -self.magnitude, self.magnitude)
            return _shortened(moved, self.magnitude)

        return jax.tree.map(one, offset, gradient)


class Gaussian(Perturbation):
    """Fresh normal noise on all weights in every inner step."""

    noise_stddev: Float[Array, ""] = eqx.field(converter=_positive("noise_stddev"), default=1e-3)

    def at_step(self, student: Optimizer, key: PRNGKeyArray) -> Optimizer:
        return _with_noise(student, key, lambda leaf: self.noise_stddev)


class RelativeGaussian(Perturbation):
    """Fresh normal noise in every inner step, relative to the root mean square of each tensor.

    Equation 5 of the paper, with 1e-8 under the root.
    """

    noise_stddev: Float[Array, ""] = eqx.field(converter=_positive("noise_stddev"), default=5e-4)

    def std(self, leaf: Float[Array, "..."]) -> Float[Array, ""]:
        """The standard deviation for one tensor."""
        return self.noise_stddev * jnp.sqrt(jnp.mean(jnp.square(leaf) + 1e-8))

    def at_step(self, student: Optimizer, key: PRNGKeyArray) -> Optimizer:
        return _with_noise(student, key, self.std)


class PersistentGaussian(Perturbation):
    """Normal noise that is drawn once for each unroll."""

    noise_stddev: Float[Array, ""] = eqx.field(converter=_positive("noise_stddev"), default=1e-2)

    def start(self, student: Optimizer, key: PRNGKeyArray) -> PyTree:
        return _with_noise(super().start(student, key), key, lambda leaf: self.noise_stddev)


class InputNoise(Perturbation):
    """Fresh normal noise on the gradients that the student sees."""

    noise_stddev: Float[Array, ""] = eqx.field(converter=_positive("noise_stddev"), default=1e-2)

    def on_gradients(self, grads: Params, key: PRNGKeyArray) -> Params:
        return _with_noise(grads, key, lambda leaf: self.noise_stddev)


PERTURBATIONS: dict[str, type[Perturbation]] = {
    "none": Unperturbed,
    "fgsm": FGSM,
    "pgd": PGD,
    "cgd": ClippedPGD,
    "projected_pgd": ProjectedPGD,
    "gaussian": Gaussian,
    "gaussian_rel": RelativeGaussian,
    "gaussian_persistent": PersistentGaussian,
    "input_noise": InputNoise,
}


class Perturbed(Optimizer):
    """A student under a perturbation, as it trains in one unroll.

    Attributes:
      student: the optimizer that is trained.
      offset: d, shaped as the student.
      perturbation: what happens in each step.
    """

    student: Optimizer
    offset: PyTree
    perturbation: Perturbation

    def init(self, params: Params, *, num_steps: int | Array | None = None, key=None) -> OptState:
        return self.student.init(params, num_steps=num_steps, key=key)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        weights_key, grads_key = jax.random.split(jax.random.fold_in(context["key"], 1))
        student = jax.tree.map(jnp.add, self.student, self.offset)
        student = self.perturbation.at_step(student, weights_key)
        return student.update(self.perturbation.on_gradients(grads, grads_key), state, params, **context)

    def eval_params(self, state: OptState, params: Params) -> Params:
        return self.student.eval_params(state, params)

    def task_settings(self, state: OptState) -> dict[str, Array]:
        return self.student.task_settings(state)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"steps = {steps} of a perturbation is not possible; give at least 1.")


def _norm(leaf: Float[Array, "..."]) -> Float[Array, ""]:
    return root(jnp.sum(jnp.square(leaf)))


def _shortened(leaf: Float[Array, "..."], limit: Float[Array, ""]) -> Float[Array, "..."]:
    """The tensor, scaled down to a norm of at most `limit`."""
    size = _norm(leaf)
    return leaf * jnp.where(size > limit, limit / jnp.where(size > 0, size, 1.0), 1.0)


def _with_noise(values: Any, key: PRNGKeyArray, std: Callable[[Array], Array]) -> Any:
    leaves, structure = jax.tree.flatten(values)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [leaf + std(leaf) * jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves)]
    )
