"""One file per system (CLIP, MAE, ViLT, ...), or one package if it has several: networks composed from blocks.

Rooms are named for what the systems read; `use: "clip:Clip"` needs no room. Imports blocks, generation, weights and the
interface; no system imports another.
"""
