"""How much of what a model writes is due to the image: the same with the image of another row.

Imports evaluation and common.
"""
