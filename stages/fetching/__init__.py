"""Images of URL lists, fetched: the stages, their blocklist, and img2dataset as another engine.

May import `common`, `images`, `lists`, `tars`, `web`.
"""
