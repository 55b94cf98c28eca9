"""Filtering of rows and texts: rules, CLIP and matching scores, language, frequency, top fraction, balancing.

May import `common`, `dual_encoders`, `endpoint`, `inference`, `judging`, `vision_language`.
"""
