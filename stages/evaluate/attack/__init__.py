"""Accuracy on inputs that are perturbed against the model. Imports `evaluate` and `models.adversarial`."""
