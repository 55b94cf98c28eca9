"""Clips of videos: how each line of work pairs narration with video, and cheap signals of text and frames.

May import `common`, `video`.
"""
