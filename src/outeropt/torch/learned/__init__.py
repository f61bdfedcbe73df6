"""Learned optimizers in torch: architectures, the weights that ship, and files of meta-training."""
