"""Scene graphs of captions: parsing, the words of a data set by kind, and texts in which one of them is replaced.

May import `common`.
"""
