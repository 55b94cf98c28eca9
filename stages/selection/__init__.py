"""Decides by the scores of judges which texts stay and how often they are seen. Nothing here computes a score.

May import `common`, `filter`, `judging`.
"""
