"""How models with a mixture of experts use them.

May import `common`.
"""
