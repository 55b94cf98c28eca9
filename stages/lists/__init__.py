"""Lists of URLs, captions and files, as they are published, read as a stream.

May import `common`, `images`.
"""
