"""Adversarial training: perturbations of a model's inputs that make its losses larger. Imports `blocks` and `interface`.

Gan et al. 2020 (VILLA), https://arxiv.org/abs/2006.06195.
"""
