"""Nonstochastic control of training: a controller that learns to mix past gradients into the step."""
