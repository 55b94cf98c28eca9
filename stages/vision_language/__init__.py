"""Image-text-to-text and image-to-text models of transformers: prompts, batches, decoding, the probability of an answer.

May import `common`, `endpoint`, `inference`.
"""
