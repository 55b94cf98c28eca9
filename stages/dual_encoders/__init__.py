"""Models with an image and a text encoder into one space, from folders of several libraries: CLIP, SigLIP and the like.

May import `common`, `inference`.
"""
