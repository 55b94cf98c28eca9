"""Evaluates decisions and predictions against the ground truth of the demo data; a perfect filter and captioner made of it.

May import `common`, `demo`, `filter`, `video`.
"""
