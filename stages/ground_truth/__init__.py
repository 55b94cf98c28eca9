"""Evaluates decisions and predictions against the ground truth of the demo data.

May import `common`, `demo`, `video`.
"""
