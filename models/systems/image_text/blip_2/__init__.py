"""BLIP-2: the first stage (`Blip2`), and the second, with a language model (`Blip2Llm`)."""

from vlpipe.models.systems.image_text.blip_2.language import Blip2Llm
from vlpipe.models.systems.image_text.blip_2.model import Blip2

__all__ = ["Blip2", "Blip2Llm"]
