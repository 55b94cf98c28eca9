"""BLIP: image encoder, text encoder and decoder with shared layers, and the published checkpoints it reads."""

from vlpipe.models.systems.image_text.blip.model import Blip

__all__ = ["Blip"]
