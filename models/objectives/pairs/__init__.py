"""Losses of image-text pairs for images with several embeddings (BLIP-2), and of answers in conversations (LLaVA).

Imports the interface and losses of the package around it.
"""
