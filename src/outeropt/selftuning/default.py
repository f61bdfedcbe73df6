"""The self-tuning optimizer to take when nothing is known: no hyperparameter to set."""

from outeropt.optimizer import Optimizer
from outeropt.optimizers import registry
from outeropt.optimizers.entry import Paper
from outeropt.optimizers.own_table import Alias


SELF_TUNING = Alias(
    "hypergradient:tail:prodigy",
    Paper(
        "Prodigy: An Expeditiously Adaptive Parameter-Free Learner",
        "Mishchenko and Defazio",
        2023,
        "2306.06101",
    ),
    {"meta_learning_rate": 0.05, "most": 2.0, "estim_lr0": 1e-3, "betas": (0.9, 0.98)},
    tuning_free=True,
)


def default() -> Optimizer:
    """`optimizers.get("self_tuning")`: three mechanisms, each for what the others cannot see.

    * Prodigy (Mishchenko and Defazio 2023, arXiv 2306.06101) finds the size of Adam's steps from how far the
      parameters went. Its estimate only grows; it starts at 1e-3, where small networks want it, rather than
      at 1e-6, and the square of the gradient is averaged over 50 steps.
    * Hypergradient descent (`HypergradientDescent`) moves a factor on that size, in [0.01, 2], by what each
      gradient says of the step before: it takes back what the estimate overshot.
    * In the last 30 % of the run the size falls to zero, where the length of the run is known
      (`init(params, num_steps=...)`), because nothing that looks one step ahead does that in time.

    It costs a gradient a step, nothing more, and six copies of the parameters as state.
    `docs/benchmarks.md` has the measurements that chose it, and those on tasks that did not.
    """
    return registry.get("self_tuning")
