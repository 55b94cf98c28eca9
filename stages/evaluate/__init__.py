"""Scores of models on held-out data: retrieval, captions, detection; arms of an experiment side by side.

May import `common`, `filter`.
"""
