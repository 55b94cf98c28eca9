"""Text against video: scores of clips and their texts, and cues moved to where they fit.

May import `common`, `features`, `video`.
"""
