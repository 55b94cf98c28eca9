"""Reads subtitle files of all known formats as cues.

May import `common`, `images`.
"""
