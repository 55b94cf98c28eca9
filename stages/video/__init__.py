"""Frames of a video at given times, and the records of videos, cues and clips.

May import `common`.
"""
