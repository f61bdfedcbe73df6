"""The nonstochastic-control meta-optimizer: controllers, disturbances, rollouts."""
