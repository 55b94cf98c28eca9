"""Corruptors: each changes samples of a view before they become a batch (masked words, mismatched texts).

A corruptor is picklable and holds no state; all random draws come from the generators that it is given, so a resumed run
draws the same. May import `common` and `loading`.
"""
