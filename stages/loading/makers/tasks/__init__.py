"""Makers of BERT's tasks: segments of documents, one or two sentences with a class, questions with a context.

May import `loading`, `loading.makers`.
"""
