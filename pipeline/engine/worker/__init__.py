"""Computes one shard or one gather step: fetches its files, finds failing rows, writes results.

Imported by the rest of `engine`. May import `engine.records`, `steps`, `shard` and the packages below them.
"""
