"""Dual encoders of transformers: CLIP, SigLIP and other models that embed images and texts by methods of the same names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.stages.common.batches import fixed_batches
from vlpipe.stages.common.scores import device, load_model, pretrained, processed
from vlpipe.stages.dual_encoders.towers import Encoders, Vectors
from vlpipe.stages.inference.precision import Precision

if TYPE_CHECKING:
    import torch

METHODS = ("get_image_features", "get_text_features")


def load(weights: Weights, precision: Precision) -> Encoders:
    """Returns the encoders of a transformers folder or hub id.

    Texts are padded to the model's positions, as SigLIP was trained; longer texts are cut. Raises VlpipeError for a model
    without the two encoders, and for one that reads pictures of any shape (NaFlex).
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = load_model(AutoModel, weights, precision)
    if not all(hasattr(model, method) for method in METHODS):
        raise VlpipeError(
            f"{weights.path}: a {type(model).__name__} does not embed images and texts ({', '.join(METHODS)}); "
            "wanted a model such as CLIPModel or SiglipModel"
        )
    reads = list(pretrained(AutoImageProcessor, weights.path, backend="pil").model_input_names)
    if reads != ["pixel_values"]:
        raise VlpipeError(
            f"{weights.path}: its image processor makes {', '.join(reads)}, wanted pixel_values alone; "
            "take a checkpoint with a fixed resolution"
        )
    bias = getattr(model, "logit_bias", None)
    return Encoders(
        prepare=processed(weights),
        images=partial(image_vectors, model),
        texts=partial(text_vectors, model, pretrained(AutoTokenizer, weights.path)),
        side=int(model.config.vision_config.image_size),
        scale=math.exp(float(model.logit_scale.detach())),
        bias=None if bias is None else float(bias.detach()),
    )


def image_vectors(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Projected image embeddings, not normalised: (B, 3, S, S) -> (B, E)."""
    import torch

    with torch.inference_mode():
        values = pixels.to(device(), non_blocking=True).to(model.dtype)
        return model.get_image_features(pixel_values=values).pooler_output.float().cpu()


def text_vectors(model: Any, tokenizer: Any, texts: Iterable[str], batch_size: int) -> Iterator[Vectors]:
    """Yields the projected embedding (E,) of each text, not normalised.

    Batches have the fixed shape (batch_size, max_position_embeddings); longer texts are truncated.
    """
    import torch

    length = model.config.text_config.max_position_embeddings
    for batch, num_real in fixed_batches(texts, batch_size):
        tokens = tokenizer(
            batch, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.inference_mode():
            vectors = model.get_text_features(**tokens.to(device())).pooler_output.float().cpu()
        yield from vectors[:num_real].numpy()
