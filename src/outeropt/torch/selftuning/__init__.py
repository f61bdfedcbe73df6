"""Optimizers that tune a torch optimizer inside while it trains: control, hypergradients, one-pass tuning."""
