"""DALL-E: texts and the codes of images as one sequence. Ramesh et al. 2021, https://arxiv.org/abs/2102.12092."""

from vlpipe.models.systems.image_text.dalle.layers import SparseLayer
from vlpipe.models.systems.image_text.dalle.model import Dalle

__all__ = ["Dalle", "SparseLayer"]
