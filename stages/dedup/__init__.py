"""Image deduplication: search similar pairs (bytes, perceptual hash, embeddings), decide which rows to keep, drop the rest.

May import `common`.
"""
