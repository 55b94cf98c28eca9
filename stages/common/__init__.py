"""What several rooms share: the image row, texts, rules, scores, fixed batches, decoded pixels, loaded models.

Imported by the other rooms. Imports none of them.
"""
