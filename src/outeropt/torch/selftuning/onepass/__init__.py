"""Tuning in one run: hyperparameters that follow the validation loss while the parameters train."""
