"""Suites: which optimizers meet on which tasks, and for how long."""

import dataclasses
from collections.abc import Mapping, Sequence

from outeropt.bench import sets
from outeropt.bench.sets import HyperparameterSet
from outeropt.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Suite:
    """A leaderboard's tasks and contestants.

    Attributes:
      name: the suite's name.
      steps: inner steps by task name, multiples of 20.
      optimizers: names of the contestants, wrapped names (`clip:adam`) included.
      seeds: seeds per setting.
    """

    name: str
    steps: Mapping[str, int]
    optimizers: tuple[str, ...]
    seeds: int = 3

    def plan(self, optimizers: Sequence[str] = ()) -> dict[str, list[HyperparameterSet]]:
        """The sets of each task: every contestant tuned (if it has a learning rate) and as is.

        Args:
          optimizers: other contestants than the suite's own.

        Raises:
          UnknownName: no such optimizer.
        """
        plan = {}
        for task, steps in self.steps.items():
            plan[task] = [
                dataclasses.replace(item, **_LIGHT, steps=steps, eval_every=steps // 20, seeds=self.seeds)
                for optimizer in optimizers or self.optimizers
                for item in contestant(optimizer)
            ]
        return plan


# Evaluation on three splits is soon dearer than training: twenty points suffice for a table and a picture.
_LIGHT = {"eval_batches": 3, "last_eval_batches": 10}


def contestant(optimizer: str) -> list[HyperparameterSet]:
    """The sets with which an optimizer plays: tuned, if it has a learning rate, and as is."""
    as_is = sets.get(f"{optimizer}-default")
    tuned = sets.tuned(optimizer)
    return [tuned, as_is] if tuned else [as_is]


_OPTIMIZERS = (
    "momentum",
    "adamw",
    "nadamw_cosine",
    "lion",
    "muon",
    "prodigy",
    "schedule_free_adamw",
    "dog",
)

# Those that Meta-Optimization compares itself with.
_SELF_TUNING = ("cocob", "dadapt_adamw", "dog", "dowg", "mechanic_sgd", "mechanic_adamw")
_METAOPT = ("sgd", "momentum", "adam", "adamw", *_SELF_TUNING)

# Its test functions of fifty parameters. DeJong3 has no slope: there all optimizers are equal.
_METAOPT_FUNCTIONS = (
    "Hypersphere", "Hyperellipsoid", "Rosenbrock", "Rastrigin", "Schwefel", "Griewank", "Ackley",
    "Michalewicz", "Eggholder", "Keane", "Rana", "DeJong3", "StyblinskiTang",
)  # fmt: skip

SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "bundled",
            {
                "ImageMLP_Digits_Relu32": 200,
                "ImageMLPAE_Digits_32x8x32_bs128": 200,
                "RNNLM_Markov16_GRU32_seq16": 200,
                "TransformerLM_Markov16_1layer_16width_seq16": 300,
                "Linear_100_cond1000": 400,
                "Function_Rosenbrock": 400,
            },
            _OPTIMIZERS,
        ),
        Suite(
            "real",
            {
                "ImageMLP_FashionMnist8_Relu32": 2000,
                "Conv_Cifar10_8_16x32": 500,
                "ImageMLPAE_Mnist_128x32x128_bs128": 300,
                "RNNLM_TinyShakespeare_LSTM64_seq32": 300,
                "TransformerLM_TinyShakespeare_1layer_32width": 300,
                "UCI_Energy": 2000,
            },
            (*_OPTIMIZERS, "sgd", "adam", "radam", "mechanic_adamw"),
        ),
        Suite("metaopt-functions", {f"Function_{name}_50": 500 for name in _METAOPT_FUNCTIONS}, _METAOPT),
        # Its workloads that two cores can train; the convolutional and the large ones are in no suite.
        Suite(
            "metaopt",
            {
                "Digits_MLP_FixedBatch": 500,
                "MNIST_MLP_FixedBatch": 300,
                "MNIST_MLP": 300,
                "Translation_Transformer_1L64_FixedBatch": 200,
                "Translation_Transformer_1L64": 200,
            },
            _METAOPT,
        ),
    )
}


def get(name: str) -> Suite:
    """A suite by name.

    Raises:
      UnknownName: no such suite.
    """
    if name not in SUITES:
        raise unknown_name("suite", name, SUITES, see=", ".join(SUITES))
    return SUITES[name]
