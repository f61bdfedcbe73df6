"""The table's fourth part: optimizers with a matrix for each side of a tensor."""

from outeropt.optimizers import spaces
from outeropt.optimizers.entry import Entry, Paper
from outeropt.optimizers.preconditioned.psgd_kron import psgd_kron
from outeropt.optimizers.preconditioned.shampoo import shampoo
from outeropt.optimizers.preconditioned.soap import soap
from outeropt.space import Space


PRECONDITIONED: dict[str, Entry] = {
    "psgd_kron": Entry(
        psgd_kron,
        Paper(
            "Curvature-Informed SGD via General Purpose Lie-Group Preconditioners",
            "Pooladzandi and Li",
            2024,
            "2402.04553",
        ),
        {"learning_rate": 1e-3},
        {
            "precondition_rate": Space.log(1e-3, 0.5, allowed=(0.0, 1.0)),
            "max_rms": Space.log(0.1, 10.0, allowed=(0.0, 1e30)),
        },
    ),
    "shampoo": Entry(
        shampoo,
        Paper(
            "Shampoo: Preconditioned Stochastic Tensor Optimization",
            "Gupta, Koren and Singer",
            2018,
            "1802.09568",
        ),
        {"learning_rate": 1e-3},
        {"adam_eps": spaces.EPSILON},
    ),
    "soap": Entry(
        soap,
        Paper("SOAP: Improving and Stabilizing Shampoo using Adam", "Vyas and others", 2024, "2409.11321"),
        {"learning_rate": 3e-3},
    ),
}
