"""Losses of systems that read images alone: classes, contrasts of two views, codes of hidden patches, pretext tasks.

May import what other objectives import.
"""
