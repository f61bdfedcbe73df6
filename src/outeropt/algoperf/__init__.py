"""AlgoPerf: any optimizer as a submission to its benchmark, and its search spaces both ways."""

from outeropt.algoperf.names import LOSS_NAMES, fill
from outeropt.algoperf.search_space import SearchSpace, read, write
from outeropt.algoperf.submission import BATCH_SIZES, Submission, UnknownWorkload, submission


__all__ = [
    "BATCH_SIZES",
    "LOSS_NAMES",
    "SearchSpace",
    "Submission",
    "UnknownWorkload",
    "fill",
    "read",
    "submission",
    "write",
]
