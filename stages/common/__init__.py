"""Code shared by several stage folders: columns of image rows, texts, rules, scores, batches, pixels, loaded models.

The other stage folders import it; it imports none of them but `formats` and `inference`.
"""
