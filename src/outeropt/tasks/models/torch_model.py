"""A task from a module of PyTorch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.task import Batch, ModelState, Params, Split, Task
from outeropt.tasks.models import host
from outeropt.tasks.models.fields import Inputs, Loss
from outeropt.tasks.models.libraries import load
from outeropt.tasks.models.model_task import rows_of
from outeropt.tasks.models.objective import known
from outeropt.tasks.models.torch_program import Call, Form, Program


def from_torch(
    build: Callable[[], Any],
    loss: Loss,
    *,
    data: Any,
    inputs: Inputs = None,
    name: str = "own",
    batch_size: int = 128,
) -> "TorchTask":
    """A task from a module of PyTorch, which PyTorch runs on the CPU.

    Model, loss and gradient are PyTorch's; batches, optimizers and the loop are those of every other task.
    The parameters are those with `requires_grad`, by their names in `named_parameters()`. Frozen parameters
    and buffers (running statistics) are the model state: what a call in training changes in them is kept, and
    evaluation, after `eval()`, leaves them as they are. PyTorch's random numbers are seeded with the step's
    key. Lanes run side by side by `torch.func.vmap`; where it cannot run the model, where it would be slow
    (convolutions), or where lanes have random numbers of their own, they run after each other.

    Derivatives are those of the loss, of first and second order, in parameters and floating fields of the
    batch; model state and metrics are constants to them.

    Args:
      build: `() -> module`, such as `lambda: Net(width=16)` or the class `Net`. It is called for every seed,
        after PyTorch was seeded, and must initialise all values.
      loss: as for `from_flax_linen`, in PyTorch: outputs and batch are tensors, whole numbers int64.
      data, name, batch_size: as for `from_flax_linen`.
      inputs: as for `from_flax_linen`; a function gets and gives tensors.

    Raises:
      ConfigError: torch is not installed, `build` gives no module of it or one with parameters that are not
        float32, or a batch lacks what is read.
      UnknownName: no loss is called so.
      OuteroptError: the data are no such rows.
    """
    torch = load("torch", "torch")
    if isinstance(build, torch.nn.Module) or not callable(build):
        raise ConfigError(
            f"build is a {type(build).__name__}; from_torch takes a function that makes the model for every "
            "seed: lambda: Net()."
        )
    known(loss)
    return TorchTask(name, rows_of(data, batch_size), Program(build, loss, inputs))


class TorchTask(Task):
    """A PyTorch model that trains on data; made by `from_torch`.

    Attributes:
      data: an object with `batch(split, key)`.
      program: the model, its loss and what it reads.
    """

    name: str = eqx.field(static=True)
    data: Any
    program: Program = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        """Values of a model that is built after PyTorch was seeded with the key."""
        trained, kept = self.program.trained, self.program.kept
        results = [*map(_shape, trained.values()), *map(_shape, kept.values())]
        found = host.call(self.program.start, results, jax.random.key_data(key))
        state = dict(zip(kept, found[len(trained) :]))
        return dict(zip(trained, found)), state or None

    def loss(self, params, state, batch, key):
        """The loss that PyTorch gives."""
        words = () if key is None else (jax.random.key_data(key),)
        return _loss(self.program, params, state, batch, words)

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        """A batch of the given data."""
        return self.data.batch(split, key)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(program: Program, params, state, batch, words):
    """Loss, next state and metrics."""
    form, arrays = _given(program, params, state, batch, words)
    found = host.call(Call(program, form, "value", ()), _results(program, form), *_flat(arrays, ()))
    return _named(program, form, state, found)


@functools.partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(program: Program, primals, tangents):
    params, state, batch, words = primals
    moved_params, _, moved_batch, _ = tangents
    form, arrays = _given(program, params, state, batch, words)
    moves = jax.tree.leaves(moved_batch, is_leaf=_is_zero)
    floats = _moving(moves)
    found, gradient = _value_and_gradient(program, form, floats, arrays)
    directions = [moved_params[name] for name in program.trained] + [moves[i] for i in floats]
    value = _named(program, form, state, found)
    return value, (_along(gradient, directions), jax.tree.map(_still, value[1]))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _value_and_gradient(program: Program, form: Form, floats: tuple[int, ...], arrays: "_Arrays"):
    """Results of a call, and the gradient in the parameters and in these leaves of the batch."""
    point = _point(arrays, floats)
    results = _results(program, form) + [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in point]
    found = host.call(Call(program, form, "gradient", floats), results, *_flat(arrays, floats))
    return found[: -len(point)], found[-len(point) :]


@functools.partial(_value_and_gradient.defjvp, symbolic_zeros=True)
def _value_and_gradient_jvp(program: Program, form: Form, floats: tuple[int, ...], primals, tangents):
    (arrays,), (moved,) = primals, tangents
    # What moves now was perhaps not differentiated before.
    wide = tuple(sorted({*floats, *_moving(moved.leaves)}))
    found, gradient = _value_and_gradient(program, form, wide, arrays)
    point = _point(arrays, wide)
    directions = [
        jnp.zeros_like(p) if _is_zero(d) else d for p, d in zip(point, _point(moved, wide), strict=True)
    ]
    shapes = [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in point]
    call = Call(program, form, "hessian", wide)
    curved = host.call(call, shapes, *_flat(arrays, wide), *directions, linear=len(point))
    count = len(arrays.params)
    kept = [*range(count), *(count + wide.index(i) for i in floats)]
    still = [_along(gradient, directions), *map(_still, found[1:])]
    return (found, [gradient[i] for i in kept]), (still, [curved[i] for i in kept])


class _Arrays(NamedTuple):
    """What a call takes: parameters, leaves of the batch, buffers, and a key's words if the model trains."""

    params: list[Any]
    leaves: list[Any]
    buffers: list[Any]
    words: tuple[Any, ...]


def _given(program: Program, params, state, batch, words) -> tuple[Form, _Arrays]:
    leaves, structure = jax.tree.flatten(batch)
    form = Form(bool(words), structure, tuple((leaf.shape, leaf.dtype.name) for leaf in leaves))
    buffers = [(state or {})[name] for name in program.kept]
    return form, _Arrays([params[name] for name in program.trained], leaves, buffers, words)


def _point(arrays: _Arrays, floats: tuple[int, ...]) -> list[Any]:
    """Parameters, and these leaves of the batch."""
    return [*arrays.params, *(arrays.leaves[i] for i in floats)]


def _flat(arrays: _Arrays, floats: tuple[int, ...]) -> list[Any]:
    """The arrays in the order in which a call takes them."""
    others = [leaf for i, leaf in enumerate(arrays.leaves) if i not in floats]
    return [*_point(arrays, floats), *arrays.buffers, *others, *arrays.words]


def _moving(moves: list[Any]) -> tuple[int, ...]:
    return tuple(i for i, move in enumerate(moves) if not _is_zero(move))


def _along(gradient: list[Any], directions: list[Any]) -> jax.Array:
    """The derivative along directions, some of which are zero."""
    pairs = [(g, d) for g, d in zip(gradient, directions, strict=True) if not _is_zero(d)]
    return sum((jnp.vdot(g, d) for g, d in pairs), start=jnp.float32(0))


def _results(program: Program, form: Form) -> list[jax.ShapeDtypeStruct]:
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    return [scalar, *map(_shape, program.kept.values()), *[scalar for _ in program.facts(form).metrics]]


def _named(program: Program, form: Form, state, found):
    """Loss, next state and metrics of a call's results."""
    loss, *rest = found
    new = dict(zip(program.kept, rest)) if form.training and state else state
    return loss, (new, dict(zip(program.facts(form).metrics, rest[len(program.kept) :])))


def _shape(tensor: Any) -> jax.ShapeDtypeStruct:
    """A tensor's shape, and the type that JAX has for its own."""
    dtype = jax.dtypes.canonicalize_dtype(str(tensor.dtype).removeprefix("torch."))
    return jax.ShapeDtypeStruct(tuple(tensor.shape), dtype)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _still(leaf: jax.Array) -> Any:
    """No tangent."""
    return jnp.zeros(
        leaf.shape, jax.dtypes.float0 if not jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
    )
