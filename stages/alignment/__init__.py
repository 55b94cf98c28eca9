"""Alignment of text and video: scores of clips and their texts, and re-timing of cues.

May import `common`, `features`, `video`.
"""
