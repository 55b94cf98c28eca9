"""Videos of a folder or a URL list to rows: found, fetched, looked at in a child process, with their cues.

May import `common`, `fetching`, `images`, `lists`, `subtitles`, `video`, `web`.
"""
