"""Decodes frames of a video at given times; schemas of videos, cues and clips.

May import `common`, `images`.
"""
