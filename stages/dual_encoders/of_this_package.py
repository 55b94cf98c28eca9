"""Dual encoders trained by this package, or read by it from open_clip's files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts
from vlpipe.pipeline.files import Weights
from vlpipe.stages.common import model as common_model
from vlpipe.stages.common.batches import Pixels, fixed_batches
from vlpipe.stages.common.pixels import to_pixels
from vlpipe.stages.dual_encoders.towers import Encoders, Vectors
from vlpipe.stages.inference.precision import Precision

if TYPE_CHECKING:
    from PIL import Image


def load(
    weights: Weights,
    precision: Precision,
    prepare: Callable[[Image.Image], Pixels] | None = None,
    keep_end: bool = False,
) -> Encoders:
    """Returns the encoders of a model that embeds images and texts.

    prepare: of its images; default: squashed to a square and normalised as in training here. keep_end: a text that is cut
    ends with the end token. Raises VlpipeError if the model lacks one of the two.
    """
    model = common_model.load(weights, needs=[EmbedsImages, EmbedsTexts], precision=precision)
    length = int(model.model.streams()["text"].get("max_positions", 30))  # as in training

    def texts(some: Iterable[str], batch_size: int) -> Iterator[Vectors]:
        for batch, num_real in fixed_batches(some, batch_size):
            vectors = model.embed_texts(*model.tokenizer.encode(batch, length, keep_end=keep_end))
            yield from vectors[:num_real].float().cpu().numpy()

    scale, bias = (getattr(model.model, f"logit_{name}", None) for name in ("scale", "bias"))
    return Encoders(
        prepare=prepare or partial(to_pixels, size=model.image_size),
        images=lambda pixels: model.embed_images(pixels).float().cpu(),
        texts=texts,
        side=model.image_size,
        scale=1.0 if scale is None else math.exp(float(scale.detach())),
        bias=None if bias is None else float(bias.detach()),
    )
