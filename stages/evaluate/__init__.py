"""Evaluation on held-out data: retrieval, captions, detection, and comparison of experiment arms.

May import `common`, `filter`, `loading`, `train`.
"""
