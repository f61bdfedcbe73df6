"""What AdafacMLP and MLPNominal have in common: one network on the same moments of each tensor."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
from jaxtyping import Array

from outeropt.learned import tensorwise
from outeropt.learned.base import LearnedOptimizer
from outeropt.learned.features import tanh_embedding
from outeropt.learned.moments import Decays, Moments, Sources, beside, look, moment_features
from outeropt.learned.networks import MLP
from outeropt.learned.per_parameter import Rule, per_parameter, per_parameter_step
from outeropt.learned.tensorwise import State


class MomentMLP(LearnedOptimizer):
    """A network on the 28 features of `moments.moment_features` and on the time.

    Subclasses make a step of what it puts out.

    Attributes:
      net: the network.
      decays: meta-learned decays of the accumulators.
      hidden_layers: number of the network's hidden layers.
      schedule: a name in `tensorwise.SCHEDULES`.
    """

    net: eqx.AbstractVar[MLP]
    decays: eqx.AbstractVar[Decays]
    hidden_layers: eqx.AbstractVar[int]
    schedule: eqx.AbstractVar[str]

    @property
    @abc.abstractmethod
    def _needs_means(self) -> bool:
        """Whether a parameter's update depends on means over its tensor."""

    @abc.abstractmethod
    def _finish(self, outputs: Sequence[Array], sources: Sources) -> Array:
        """The update from the network's outputs, before the schedule."""

    @property
    def published_names(self) -> dict[str, str]:
        """Names in learned_optimization's checkpoints."""
        names = {
            "decays.momentum": "momentum_decays",
            "decays.rms": "rms_decays",
            "decays.factored": "adafactor_decays",
        }
        for i in range(self.hidden_layers + 1):
            names |= {f"net.layers.{i}.weight": f"nn/~/w{i}", f"net.layers.{i}.bias": f"nn/~/b{i}"}
        return names

    def init(self, params, *, num_steps=None, key=None) -> State:
        """All accumulators zero."""
        del key
        return tensorwise.start(Moments.zeros, params, self.schedule, num_steps)

    def update(self, grads, state: State, params, **context: Any):
        """One step; uses nothing of the context."""
        del context
        time = tanh_embedding(state.step)
        scale = tensorwise.scheduled(self.schedule, state)
        rule = Rule(look, moment_features, self._finish)

        def move(grad, param, moments):
            factored = moments.factored_updated(self.decays, grad)
            given = self.decays.of_averages(grad.ndim), beside(factored, grad, param)
            if self._needs_means:
                sources, averages = look(moments.averages, given)
                outputs = per_parameter(self.net.layers, moment_features, sources, param.shape, time)
                update = self._finish(outputs, sources)
            else:
                update, averages = per_parameter_step(
                    self.net.layers, rule, moments.averages, given, param.shape, time
                )
            return scale * update, Moments(averages.momentum, averages.rms, factored)

        return tensorwise.advance(move, grads, state, params)
