"""Rows and texts kept or dropped: rules, CLIP and matching scores, language, frequency, top fraction, balance.

May import `common`.
"""
