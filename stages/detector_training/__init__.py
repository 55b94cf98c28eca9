"""Training of a region detector on boxes.

May import `common`, `loading`, `train`.
"""
