"""What tasks made from images alone need besides training: numbers of rows, shares of colours, figures on held-out images.

May import `common`, `loading`, `train`.
"""
