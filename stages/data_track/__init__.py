"""Compares data sets by models that are trained on them: zero-shot classification, and the table of a data track.

May import `common`, `evaluate`, `fine_grained`, `inference`.
"""
