"""Features of images and videos: embeddings, S3D, HowTo100M 2D and 3D, frames, video tokens.

May import `common`, `dedup`, `video`.
"""
