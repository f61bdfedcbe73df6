"""What estimates of the distance to the solution share."""

import torch
from torch import Tensor


def raised(estimate: Tensor, candidate: Tensor, growth_rate: float) -> Tensor:
    """`max(estimate, min(candidate, estimate * growth_rate))`: estimates never fall."""
    return torch.maximum(estimate, torch.minimum(candidate, estimate * growth_rate))
