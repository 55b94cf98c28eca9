"""Losses of mixtures of experts. Imports the interface and `models.experts`."""
