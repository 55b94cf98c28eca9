"""Code shared by several stage folders: the image row, texts, rules, scores, fixed batches, pixels, loaded models.

The other stage folders import it; it imports none of them.
"""
