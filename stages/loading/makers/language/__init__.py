"""What language models read: texts of which the start is given, conversations, tiles of pictures of any shape.

Imports the makers around it.
"""
