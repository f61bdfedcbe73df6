"""Tuning-free optimizers beyond optax's, as optax factories; `table` registers them."""
