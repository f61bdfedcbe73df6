"""The plain optimizers that "Optimizer Amalgamation" learns from: averages from zero, smooth everywhere."""
