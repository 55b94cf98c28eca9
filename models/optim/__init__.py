"""What of a model is trained, and how: frozen parts, groups of parameters, optimisers.

Imports no other part of models.
"""
