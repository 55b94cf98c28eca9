"""Scores of several judges side by side: one column of the row per judge, one number per text.

May import `common`.
"""
