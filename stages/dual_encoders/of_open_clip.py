"""Dual encoders in open_clip's format: a folder with `open_clip_config.json` and weights, as its `local-dir:` opens it.

CLIP as published (DFN's and LAION's ViTs among them) needs nothing else; another network, such as SigLIP over a ViT of
timm, is built by the package open_clip if it is installed. https://github.com/mlfoundations/open_clip
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlpipe.models.folder import FILES, OPEN_CLIP
from vlpipe.models.layouts.image_text.clip import open_clip as layout
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.models.weights.hub import local_folder
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.stages.common.batches import Pixels, fixed_batches
from vlpipe.stages.common.scores import device
from vlpipe.stages.dual_encoders import of_this_package
from vlpipe.stages.dual_encoders.towers import Encoders, Vectors
from vlpipe.stages.inference.precision import Precision, placed

if TYPE_CHECKING:
    import torch
    from PIL import Image


def is_open_clip(path: str) -> bool:
    """Returns whether a folder on disk is open_clip's alone: one that transformers can open too is read as such."""
    return Path(path, OPEN_CLIP).is_file() and not Path(path, "config.json").is_file()


def load(weights: Weights, precision: Precision) -> Encoders:
    """Returns the encoders of an open_clip folder.

    Raises VlpipeError if the network is not CLIP's own and open_clip is not installed, or the folder has no tokenizer.
    """
    folder = local_folder(weights.path, [*FILES, "*.model"])
    config = _config(folder)
    try:
        network = layout.read(config)
    except ValueError as error:
        return _by_open_clip(folder, precision, error)
    if not Tokenizer.is_in(folder):
        raise VlpipeError(
            f"{folder} has no tokenizer; put open_clip's vocab.json and merges.txt beside the weights"
        )
    prepare = partial(prepared, config.get("preprocess_cfg", {}), network["image_size"])
    return of_this_package.load(weights, precision, prepare, keep_end=True)


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / OPEN_CLIP).read_text(encoding="utf-8"))
        return {**found, "model_cfg": dict(found["model_cfg"])}
    except (ValueError, KeyError, TypeError) as error:
        raise VlpipeError(f"{folder / OPEN_CLIP} is not a config of open_clip: {error!r}") from error


def prepared(config: Mapping[str, Any], side: int, image: Image.Image) -> Pixels:
    """Returns pixels (3, side, side) of an RGB image, resized, cut and normalised as open_clip's `image_transform` does.

    config: `preprocess_cfg`. resize_mode: `shortest`, the default, scales the shorter side and cuts out the middle; `squash`
    scales both. Raises VlpipeError for another mode.
    """
    from PIL import Image as Pillow

    mode = config.get("resize_mode") or "shortest"
    how = (
        Pillow.Resampling.BILINEAR if config.get("interpolation") == "bilinear" else Pillow.Resampling.BICUBIC
    )
    if mode == "squash":
        image = image.resize((side, side), how)
    elif mode == "shortest":
        width, height = image.size
        short = min(width, height)
        scaled = (max(side, int(side * width / short)), max(side, int(side * height / short)))
        image = image.resize(scaled, how)
        left, top = (round((size - side) / 2) for size in image.size)
        image = image.crop((left, top, left + side, top + side))
    else:
        raise VlpipeError(f"preprocess_cfg: resize_mode {mode!r} is not known; wanted shortest or squash")
    values = np.asarray(image, np.float32) / 255
    mean, std = (
        np.float32(config.get(name, default))
        for name, default in (("mean", layout.MEAN), ("std", layout.STD))
    )
    return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1), np.float32)


def _by_open_clip(folder: Path, precision: Precision, why: ValueError) -> Encoders:
    try:
        import open_clip
    except ImportError as error:
        raise VlpipeError(f"{folder}: {why}; it needs open_clip: pip install open_clip_torch") from error
    name = f"local-dir:{folder}"
    model, prepare = open_clip.create_model_from_pretrained(name)
    size = model.visual.image_size
    model = placed(model, precision, device())
    bias = getattr(model, "logit_bias", None)
    return Encoders(
        prepare=partial(_pixels, prepare),
        images=partial(_image_vectors, model),
        texts=partial(_text_vectors, model, open_clip.get_tokenizer(name)),
        side=size[0] if isinstance(size, tuple | list) else int(size),
        scale=math.exp(float(model.logit_scale.detach())),
        bias=None if bias is None else float(bias.detach()),
    )


def _pixels(prepare: Callable[[Image.Image], torch.Tensor], image: Image.Image) -> Pixels:
    return np.asarray(prepare(image).numpy(), np.float32)


def _image_vectors(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        values = pixels.to(device(), non_blocking=True).to(model.logit_scale.dtype)
        return model.encode_image(values).float().cpu()


def _text_vectors(model: Any, tokenizer: Any, texts: Iterable[str], batch_size: int) -> Iterator[Vectors]:
    import torch

    for batch, num_real in fixed_batches(texts, batch_size):
        with torch.inference_mode():
            vectors = model.encode_text(tokenizer(batch).to(device())).float().cpu()
        yield from vectors[:num_real].numpy()
