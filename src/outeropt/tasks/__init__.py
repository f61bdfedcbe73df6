"""What optimizers are trained on: `names`, `get`, `describe` know every task, `from_functions` adds yours."""

from outeropt.tasks.contract import check
from outeropt.tasks.models import (
    from_equinox,
    from_flax_linen,
    from_flax_nnx,
    from_haiku,
    from_torch,
)
from outeropt.tasks.own import from_functions, from_stateful_functions
from outeropt.tasks.registry import dataset, describe, family, get, known, names, not_provided
from outeropt.tasks.sequences.language import TokenData
from outeropt.tasks.wrappers.families import FAMILIES, single


__all__ = [
    "FAMILIES",
    "TokenData",
    "check",
    "dataset",
    "describe",
    "family",
    "from_equinox",
    "from_flax_linen",
    "from_flax_nnx",
    "from_functions",
    "from_haiku",
    "from_stateful_functions",
    "from_torch",
    "get",
    "known",
    "names",
    "not_provided",
    "single",
]
