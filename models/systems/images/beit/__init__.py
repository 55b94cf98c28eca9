"""BEiT, and the codebook whose codes it predicts. Bao et al. 2021, https://arxiv.org/abs/2106.08254."""

from vlpipe.models.systems.images.beit.codebook import ImageCodebook
from vlpipe.models.systems.images.beit.model import Beit

__all__ = ["Beit", "ImageCodebook"]
