"""CapFilt's captioner: writes a text for each web image.

May import `common`.
"""
