"""How a stage runs a model on many rows: its precision, and pictures that are prepared while it computes.

`common` imports it; it imports none of the other stage folders.
"""
