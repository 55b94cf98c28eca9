"""Readers of published captioned sets whose files have a form of their own.

May import the rest of `lists` and what it imports.
"""
