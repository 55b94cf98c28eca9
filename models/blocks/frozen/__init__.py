"""Models that larger systems keep frozen, an image encoder and a language model, and BLIP-2's Q-Former between them.

Imports the blocks around it.
"""
