"""Region features of images, by a bottom-up-attention detector or a detector of the transformers library.

May import `common`.
"""
