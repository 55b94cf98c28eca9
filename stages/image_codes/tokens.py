"""Writes the discrete codes of images as a heavy column: the tokens of a discrete VAE, of which an image has many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import heavy, need, with_field
from vlpipe.stages.image_codes.codes import IMAGE_CODES, ImageCodes


@dataclass(frozen=True, kw_only=True)
class ImageTokens(ImageCodes):
    """As `ImageCodes`, but `image_codes` is a heavy column: written once, it is joined by id where a stage reads it.

    model: a codebook or a trained discrete VAE. DALL-E's 1,024 codes of an image take 4 KB, which each further step over the
    rows would copy if the column were light.
    """

    NAME: ClassVar[str] = "image_codes.tokens:ImageTokens"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "image_codes.tokens", id=pa.string(), image=pa.binary())
        return with_field(inp, heavy(IMAGE_CODES.name, IMAGE_CODES.type))
