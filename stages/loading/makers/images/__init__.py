"""Makers of streams from one image: distorted views, two sizes, codes of patches, sampled pixels.

May import what `makers` imports.
"""
