"""Ensures one run per root: the lock, its files, the processes of a run, and the signals that stop it.

Imported by the rest of `engine`. May import `storage` and `errors`.
"""
