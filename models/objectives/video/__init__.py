"""Losses of systems that read video and narration.

May import what other objectives import.
"""
