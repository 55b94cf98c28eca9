"""How well a model tells which captions belong to an image. May import what `evaluate` imports."""
