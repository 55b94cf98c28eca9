"""Fetch the images of URL lists: the stages, their blocklist, and img2dataset as an alternative engine.

May import `common`, `images`, `lists`, `tars`, `web`.
"""
