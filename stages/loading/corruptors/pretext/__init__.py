"""Tasks made from the image alone: tiles shuffled, puzzles, pairs of patches, overlapping patches, holes, noise.

May import `common` and `loading`.
"""
