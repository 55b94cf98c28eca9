"""Region features of images, by a bottom-up-attention detector or one of transformers.

May import `common`.
"""
