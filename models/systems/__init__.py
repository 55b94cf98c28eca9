"""One file per system (CLIP, MAE, ViLT, ...), or one package if it has several: networks composed from blocks.

Imports blocks, generation, weights and the interface; no system imports another.
"""
