"""Optimizers that tune an optimizer inside while they train: control, hypergradients."""
