"""Optimizers with a matrix for each side of a tensor, as optax factories; `table` registers them."""
