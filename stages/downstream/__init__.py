"""Downstream tasks of models of images and texts: the published files, and scores of finetuned models.

May import `common`, `evaluate`, `fine_grained`, `lists`, `loading`, `train`.
"""
