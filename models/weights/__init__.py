"""Weights that others published: from a hub, a PyTorch file, a detectron2 pickle. Nothing in a file is run.

Imports no other part of models.
"""
