"""Videos with the list of their narrated clips, from which training draws several per video.

May import `clips`, `common`, `video`.
"""
