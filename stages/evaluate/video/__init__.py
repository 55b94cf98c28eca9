"""Evaluation of video-text models as their papers do it: retrieval, steps of tasks, actions, captions, words in a template.

May import `common`, `evaluate`, `loading`, `train`.
"""
