"""Synthetic data for the demos: scenes, noisy alt-text, films with narration, all generated from a seed.

May import `common`, `video`.
"""
