"""Optimizers that tune an optimizer inside while they train: control, hypergradients."""

from outeropt.selftuning.control.metaopt import MetaOpt


__all__ = ["MetaOpt"]
