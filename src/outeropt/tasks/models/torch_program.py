"""A PyTorch model as pure functions of numpy arrays: initial values, loss and its derivatives."""

import copy
import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from outeropt.errors import ConfigError, first_line
from outeropt.tasks.contract import kind
from outeropt.tasks.models.fields import Inputs, Loss, inputs_of, value_and_metrics
from outeropt.tasks.models.libraries import load
from outeropt.tasks.models.torch_lanes import over_lanes
from outeropt.tasks.models.torch_losses import LOSSES


# PyTorch's stream of random numbers belongs to the process, and calling a module with other parameters
# changes it meanwhile: one call at a time, which has all of PyTorch's threads.
_ALONE = threading.Lock()

Shape = tuple[tuple[int, ...], str]


@dataclasses.dataclass(frozen=True)
class Form:
    """What one call gets and gives; all of it decides the compiled program.

    Attributes:
      training: whether the model trains, with randomness and running statistics.
      batch: structure of a batch.
      leaves: shapes and types of its leaves.
    """

    training: bool
    batch: Any
    leaves: tuple[Shape, ...]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a trial of a call on zeros has shown.

    Attributes:
      metrics: names of the loss' metrics.
      random: whether PyTorch's stream of random numbers was used.
      batched: whether `torch.func.vmap` can run it.
    """

    metrics: tuple[str, ...]
    random: bool
    batched: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """The model, its loss and what it reads.

    Attributes:
      build: `() -> torch.nn.Module`.
      loss: a name, or `(outputs, batch) -> loss` in PyTorch.
      inputs: as `fields.inputs_of` takes it, in PyTorch.
    """

    build: Callable[[], Any]
    loss: Loss
    inputs: Inputs

    @functools.cached_property
    def module(self) -> Any:
        """The module as it is built; its values are never used."""
        torch = load("torch", "torch")
        with _ALONE, torch.random.fork_rng(devices=[]):
            module = self._built()
        for name, tensor in module.named_parameters():
            if tensor.requires_grad and tensor.dtype != torch.float32:
                raise ConfigError(
                    f"The model's parameter {name} is {tensor.dtype}; parameters must be torch.float32."
                )
        return module

    @functools.cached_property
    def modes(self) -> dict[bool, Any]:
        """The module in training and at evaluation."""
        return {training: copy.deepcopy(self.module).train(training) for training in (True, False)}

    @functools.cached_property
    def trained(self) -> dict[str, Any]:
        """Tensors that are trained, by name."""
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    @functools.cached_property
    def kept(self) -> dict[str, Any]:
        """Buffers and frozen parameters, by name."""
        return _others(self.module)

    def start(self, lanes: int, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Parameters, then buffers, of a model that is built with this seed."""
        torch = load("torch", "torch")

        def one(seed):
            torch.default_generator.manual_seed(int(seed))
            module = self._built()
            parameters = [p.detach() for p in module.parameters() if p.requires_grad]
            return [*parameters, *_others(module).values()]

        seeds = _seeds(arrays[0])
        with _ALONE, torch.random.fork_rng(devices=[]):
            return [tensor.numpy() for tensor in over_lanes(one, lanes, [], seeds, False)]

    def facts(self, form: Form) -> Facts:
        """What a call on zeros shows.

        Raises:
          ConfigError: the model or the loss raises, or gives something that cannot be used.
        """
        return _facts(self, form)

    def value(self, form: Form, point: Any, rest: Any) -> tuple[Any, list[Any]]:
        """The loss of one lane, and next to it the loss again, the next buffers and the metrics.

        Args:
          form: of the call.
          point: parameters, and those floating leaves of the batch that are differentiated.
          rest: buffers, and the other leaves of the batch, each with None where it is in the point.
        """
        loss, aux, _ = self._evaluate(form, point, rest)
        return loss, aux

    def _evaluate(self, form: Form, point, rest) -> tuple[Any, list[Any], tuple[str, ...]]:
        torch = load("torch", "torch")
        (parameters, floats), (buffers, leaves) = point, rest
        floats = iter(floats)
        leaves = [next(floats) if leaf is None else leaf for leaf in leaves]
        batch = jax.tree.unflatten(form.batch, leaves)
        # A call in training writes into the buffers.
        state = {name: buffer.clone() for name, buffer in zip(self.kept, buffers, strict=True)}
        tensors = dict(zip(self.trained, parameters, strict=True))
        inputs = inputs_of(batch, self.inputs, _as_float)
        variables = {**tensors, **state}
        outputs = torch.func.functional_call(self.modes[form.training], variables, inputs)
        loss = LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
        value, metrics = value_and_metrics(loss(outputs, batch), self.loss)
        if not isinstance(value, torch.Tensor) or value.shape != () or not value.dtype.is_floating_point:
            raise ConfigError(
                f"The loss gave {_form(value)}; it must give a floating scalar, such as a mean."
            )
        names = tuple(sorted(metrics))
        scalars = [torch.as_tensor(metrics[name]).detach().to(torch.float32) for name in names]
        for name, scalar in zip(names, scalars):
            if scalar.shape != ():
                raise ConfigError(
                    f"The loss gave the metric {name!r} as {_form(scalar)}; it must be a scalar."
                )
        value = value.to(torch.float32)
        new = [variables[name].detach() for name in self.kept] if form.training else list(state.values())
        return value, [value.detach(), *new, *scalars], names

    def _built(self) -> Any:
        torch = load("torch", "torch")
        module = self.build()
        if not isinstance(module, torch.nn.Module):
            raise ConfigError(f"build gave {kind(module)}; it must give a torch.nn.Module.")
        return module


@dataclasses.dataclass(frozen=True)
class Call:
    """One of a program's functions, of all lanes and of numpy arrays.

    It takes the point, the rest, a seed if the model trains, and, for `hessian`, a direction.

    Attributes:
      program: the model.
      form: of the call.
      which: `"value"`; `"gradient"`: value, then the gradient in the point; or `"hessian"`: its product with
        a direction.
      floats: positions of the batch's leaves that belong to the point.
    """

    program: Program
    form: Form
    which: str
    floats: tuple[int, ...]

    def __call__(self, lanes: int, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Results for all lanes."""
        torch = load("torch", "torch")
        facts = self.program.facts(self.form)
        counts = len(self.program.trained), len(self.floats)
        rest = len(self.program.kept) + len(self.form.leaves) - counts[1]
        end = sum(counts) + rest
        words = arrays[end] if self.form.training else None
        tensors = [_tensor(a) for i, a in enumerate(arrays) if i != end or words is None]
        seeds = _seeds(words) if words is not None and facts.random else None
        # Twice differentiated, operations of PyTorch write in place, which vmap refuses.
        batched = facts.batched and self.which != "hessian"
        # Buffers vary with the lanes that write into them.
        sizes = [max(array.shape[i] for array in arrays) for i in range(lanes)]
        first = sum(counts)
        for i, buffer in enumerate(self.program.kept.values(), first):
            tensors[i] = tensors[i].to(buffer.dtype).expand((*sizes, *buffer.shape))
        with _ALONE, torch.random.fork_rng(devices=[]):
            found = over_lanes(self._lane, lanes, tensors, seeds, batched)
        return [tensor.detach().numpy() for tensor in found]

    def _lane(self, *given) -> list[Any]:
        torch = load("torch", "torch")
        *tensors, seed = given
        if seed is not None:
            torch.default_generator.manual_seed(int(seed))
        parameters = tensors[: len(self.program.trained)]
        tensors = tensors[len(parameters) :]
        floats, tensors = tensors[: len(self.floats)], tensors[len(self.floats) :]
        buffers, tensors = tensors[: len(self.program.kept)], tensors[len(self.program.kept) :]
        others = iter(tensors)
        leaves = [None if i in self.floats else next(others) for i in range(len(self.form.leaves))]
        point, rest = (tuple(parameters), tuple(floats)), (buffers, leaves)
        function = functools.partial(self.program.value, self.form)
        if self.which == "value":
            return function(point, rest)[1]
        if self.which == "gradient":
            gradients, aux = torch.func.grad(function, has_aux=True)(point, rest)
            return [*aux, *gradients[0], *gradients[1]]
        direction = list(others)
        split = len(parameters)
        _, pull = torch.func.vjp(lambda point: torch.func.grad(lambda p: function(p, rest)[0])(point), point)
        (moved,) = pull((tuple(direction[:split]), tuple(direction[split:])))
        return [*moved[0], *moved[1]]


@functools.lru_cache(maxsize=256)
def _facts(program: Program, form: Form) -> Facts:
    torch = load("torch", "torch")
    parameters = [tensor.clone() for tensor in program.trained.values()]
    buffers = list(program.kept.values())
    leaves = [_tensor(np.zeros(shape, dtype)) for shape, dtype in form.leaves]
    function = functools.partial(program.value, form)
    point, rest = (tuple(parameters), ()), (buffers, leaves)
    with _ALONE, torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        try:
            names = program._evaluate(form, point, rest)[2]
            random = not torch.equal(before, torch.get_rng_state())
            torch.func.grad(function, has_aux=True)(point, rest)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"The PyTorch model or its loss raised {first_line(error)}.") from error
        batched = not any(isinstance(m, torch.nn.modules.conv._ConvNd) for m in program.module.modules())
        if batched:
            wide = [tensor.expand((2, *tensor.shape)) for tensor in (*parameters, *buffers)]

            def lane(*tensors):
                point = tuple(tensors[: len(parameters)]), ()
                return torch.func.grad(function, has_aux=True)(
                    point, (list(tensors[len(parameters) :]), leaves)
                )

            try:
                torch.func.vmap(lane, randomness="same")(*wide)
            except Exception:
                batched = False
    return Facts(names, form.training and random, batched)


def _others(module: Any) -> dict[str, Any]:
    frozen = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    return frozen | {name: buffer.detach() for name, buffer in module.named_buffers()}


def _seeds(words: np.ndarray) -> np.ndarray:
    """A whole number of 63 bits from each pair of 32."""
    high, low = (words[..., i].astype(np.uint64) for i in (-2, -1))
    return ((high & np.uint64(0x7FFFFFFF)) << np.uint64(32) | low).astype(np.int64)


def _tensor(array: np.ndarray) -> Any:
    """A tensor with a memory of its own; whole numbers have 64 bits, as PyTorch's indices have."""
    tensor = load("torch", "torch").from_numpy(np.array(array))
    return tensor.long() if np.issubdtype(array.dtype, np.integer) and array.dtype != np.uint8 else tensor


def _as_float(x: Any) -> Any:
    torch = load("torch", "torch")
    return x.to(torch.float32) * (1 / 255) if x.dtype == torch.uint8 else x


def _form(value: Any) -> str:
    if hasattr(value, "dtype"):
        return f"a tensor {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return kind(value)
