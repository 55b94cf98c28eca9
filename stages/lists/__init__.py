"""Reads published lists of URLs, captions and files as a stream.

May import `common`, `images`.
"""
