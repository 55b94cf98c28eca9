"""Filtering of rows and texts: rules, CLIP and matching scores, language, frequency, top fraction, balancing.

May import `common`, `dual_encoders`, `inference`, `judging`, `vision_language`.
"""
