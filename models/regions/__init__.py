"""Bases of systems that read a detector's regions: their streams, and what predicts words, regions and matches.

Imports `blocks` and `interface` of models.
"""
