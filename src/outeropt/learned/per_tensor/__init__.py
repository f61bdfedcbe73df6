"""Learned optimizers with a network that looks at whole tensors."""
