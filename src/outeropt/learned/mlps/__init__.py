"""Learned optimizers whose networks look at each parameter by itself."""
