"""Images drawn for texts by a model of codes and the decoder of its codes, ranked by a model that compares both.

May import `common`.
"""
