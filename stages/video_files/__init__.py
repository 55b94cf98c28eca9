"""Video rows from a folder or URL list: find or fetch the files, probe them in a child process, read their cues.

May import `common`, `fetching`, `images`, `lists`, `subtitles`, `video`, `web`.
"""
