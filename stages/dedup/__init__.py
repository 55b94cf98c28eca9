"""Duplicate images: search for similar pairs (bytes, perceptual hash, embeddings), decide, drop.

May import `common`.
"""
