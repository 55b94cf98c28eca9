"""Reads HowTo100M as published: its lists and captions, and one row per available video.

May import `common`, `lists`, `subtitles`, `video`, `video_files`.
"""
