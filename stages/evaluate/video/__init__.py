"""Evaluation of video-text models as their papers do it: retrieval, steps of tasks, actions.

May import `common`, `evaluate`, `loading`, `train`.
"""
