"""Models for downstream tasks: small heads, each over any model that sees a text and an image together.

May import `blocks`, `build` and `interface`.
"""
