"""Held-out rows as a model sees its training data: by its makers, under the corruptors of views, in batches.

May import `common`, `train`.
"""
