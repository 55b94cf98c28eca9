"""Loading of training data: row groups in memory, sample order, augmentation.

May import `common`.
"""
