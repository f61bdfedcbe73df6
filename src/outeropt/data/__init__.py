"""Where data comes from: datasets by name, and a user's own. Nothing is read before it is asked for."""

from outeropt.data.arrays import ArrayData, as_float
from outeropt.data.catalogue import Description, describe, fetch, names
from outeropt.data.images import images
from outeropt.data.own import from_arrays, from_npz
from outeropt.data.tables import table, target_deviation
from outeropt.data.text import tokens, vocabulary
from outeropt.data.verify import CorruptData


__all__ = [
    "ArrayData",
    "CorruptData",
    "Description",
    "as_float",
    "describe",
    "fetch",
    "from_arrays",
    "from_npz",
    "images",
    "names",
    "table",
    "target_deviation",
    "tokens",
    "vocabulary",
]
