"""Makers of downstream tasks: scores of all answers, a row's second image, texts of which one is right.

May import `common`, `loading`, `loading.makers`.
"""
