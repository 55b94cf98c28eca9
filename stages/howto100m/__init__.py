"""HowTo100M as it is published: its lists, its captions, a row for each video that is there.

May import `common`, `lists`, `subtitles`, `video`, `video_files`.
"""
