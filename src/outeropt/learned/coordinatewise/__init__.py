"""Recurrent learned optimizers that treat all parameters as one vector of coordinates."""
