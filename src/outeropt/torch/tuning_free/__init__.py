"""Optimizers that need no learning rate, or nearly none, which PyTorch lacks."""
