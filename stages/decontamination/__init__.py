"""Rows and texts that also stand in an evaluation set: found, each with its witness, before training.

May import `common`, `dedup`, `lists`, `text_dedup`.
"""
