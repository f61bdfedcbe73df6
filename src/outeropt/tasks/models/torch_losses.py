"""The losses by name, in PyTorch."""

from typing import Any

from outeropt.errors import ConfigError
from outeropt.tasks.models.fields import LABELS, VALUES, field
from outeropt.tasks.models.libraries import load
from outeropt.tasks.models.objective import is_array, mismatch


def cross_entropy(outputs: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
    """As `objective.cross_entropy`."""
    torch = load("torch", "torch")
    label = field(batch, LABELS, "cross_entropy reads", "loss")
    same = is_array(outputs) and outputs.ndim > 0 and outputs.shape[:-1] == label.shape
    if not same or label.dtype.is_floating_point:
        raise ConfigError(
            mismatch("cross_entropy", outputs, label, "scores [*rows, classes]", "integers [*rows]")
        )
    scores, label = outputs.reshape(-1, outputs.shape[-1]), label.reshape(-1).long()
    hits = (scores.argmax(dim=-1) == label).to(torch.float32)
    return torch.nn.functional.cross_entropy(scores, label), {"accuracy": hits.mean()}


def mean_squared_error(outputs: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
    """As `objective.mean_squared_error`."""
    y = field(batch, VALUES, "mean_squared_error reads", "loss")
    if not is_array(outputs) or outputs.shape != y.shape:
        raise ConfigError(mismatch("mean_squared_error", outputs, y, "values", "values of the same shape"))
    return ((outputs - y) ** 2).mean(), {}


LOSSES = {"cross_entropy": cross_entropy, "mean_squared_error": mean_squared_error}
