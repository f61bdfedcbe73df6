"""Learned optimizers that choose, for each coordinate at each step, among the updates of other optimizers."""
