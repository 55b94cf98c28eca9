"""Discrete codes of images, by patches that are fitted here or by DALL-E's encoder, and how well they are predicted.

May import `common`, `inference`, `loading`, `train`.
"""
