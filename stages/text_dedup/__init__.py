"""Deduplication of texts that occur on several rows, equal or nearly equal.

May import `common`, `dedup`.
"""
