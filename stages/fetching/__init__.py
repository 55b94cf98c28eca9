"""Stages that fetch the images of URL lists, their blocklist, and img2dataset as an alternative engine.

May import `common`, `images`, `lists`, `tars`, `web`.
"""
