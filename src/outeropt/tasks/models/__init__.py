"""A user's own model as a task: one file and one function for each library that models are written in.

None of these libraries is imported before its function is called.
"""

from outeropt.tasks.models.equinox_model import from_equinox
from outeropt.tasks.models.flax_linen import from_flax_linen
from outeropt.tasks.models.flax_nnx import from_flax_nnx
from outeropt.tasks.models.haiku_model import from_haiku
from outeropt.tasks.models.torch_model import from_torch


__all__ = ["from_equinox", "from_flax_linen", "from_flax_nnx", "from_haiku", "from_torch"]
