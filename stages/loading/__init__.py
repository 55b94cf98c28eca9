"""Training data on its way to a batch: row groups in memory, the order of samples, augmentation.

May import `common`.
"""
