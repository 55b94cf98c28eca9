"""CapFilt's captioner: generates synthetic captions for web images.

May import `common`.
"""
