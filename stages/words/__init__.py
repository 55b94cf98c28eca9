"""Lists of words and their vectors, for models that read texts as bags of words.

May import `common`, `loading`.
"""
