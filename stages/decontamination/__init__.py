"""Decontamination: finds training rows and texts that are also in an evaluation set, each with the matching item.

May import `common`, `dedup`, `lists`, `text_dedup`.
"""
