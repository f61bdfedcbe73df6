"""The optimizers of this package in Keras 3, on its JAX and its PyTorch backend.

    model.compile(optimizer=outeropt.keras.load("amalgam-choice-large-7"), loss="mse")

Importing this room imports Keras, for the backend that KERAS_BACKEND or Keras's configuration names. Import
it before `keras.models.load_model` reads a model that was trained with one of these optimizers.
"""

from outeropt.keras.averages import EvaluateAverages, averaged
from outeropt.keras.optimizer import Optimizer, load, names


__all__ = ["EvaluateAverages", "Optimizer", "averaged", "load", "names"]
