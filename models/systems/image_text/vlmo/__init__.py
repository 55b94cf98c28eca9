"""VLMo, and its layers of modality experts. Bao et al. 2021, https://arxiv.org/abs/2111.02358."""

from vlpipe.models.systems.image_text.vlmo.model import Vlmo

__all__ = ["Vlmo"]
