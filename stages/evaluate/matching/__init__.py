"""How well a model tells which captions belong to an image, and words to its regions. May import what `evaluate` imports."""
