"""Texts that are on many rows, equal or nearly equal.

May import `common`, `dedup`.
"""
