"""Losses of systems that read images alone: classes, contrasts of two views, codes of hidden patches.

May import what other objectives import.
"""
