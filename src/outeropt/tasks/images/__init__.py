"""Classifiers, autoencoders and generators of images."""
