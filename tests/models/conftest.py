from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vlpipe.models.interface.batch import Batch, Step, Stream
from vlpipe.models.systems.image_text.blip.config import TOKENS, BlipConfig
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer

CORPUS = [
    "a red circle on the left of a blue square",
    "two green triangles above the yellow star, it's bright!",
    "a picture of a small dog and a left-hand glove",
    "IMG_0123 best price don't miss",
]
SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "vision_width": 32,
    "vision_layers": 2,
    "vision_heads": 4,
    "text_width": 24,
    "text_layers": 2,
    "text_heads": 3,
    "max_text_length": 24,
    "embed_dim": 16,
    "dropout": 0.0,
}


@pytest.fixture(autouse=True)
def _one_thread_one_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, 150)


@pytest.fixture
def make_blip(tokenizer: Tokenizer) -> Callable[..., Blip]:
    """A small Blip whose weights are large enough that all its parts matter, in eval mode."""

    def make(**changes: Any) -> Blip:
        ids = {name: getattr(tokenizer, name) for name in ("vocab_size", *TOKENS)}
        blip = Blip(BlipConfig(**{**ids, **SIZES, **changes}))
        for param in blip.parameters():
            if param.dim() > 1:
                param.data.mul_(5)
            elif param.dim() == 1:
                param.data.add_(0.1 * torch.randn_like(param))
        return blip.eval()

    return make


@pytest.fixture
def make_batch(tokenizer: Tokenizer) -> Callable[..., Batch]:
    """Random pixels and texts of different lengths; `same` defaults to all different."""

    def make(num: int, length: int = 10, same: list[int] | None = None, progress: float = 1.0) -> Batch:
        ids = torch.randint(7, tokenizer.vocab_size, (num, length))
        lengths = torch.tensor([4 + (3 * i) % (length - 3) for i in range(num)])
        mask = torch.arange(length) < lengths[:, None]
        ids[:, 0] = tokenizer.cls
        ids[torch.arange(num), lengths - 1] = tokenizer.sep
        text = Stream(ids.masked_fill(~mask, tokenizer.pad), mask)
        return Batch(
            streams={"image": Stream(torch.randn(num, 3, 32, 32)), "text": text},
            same=torch.tensor(same if same is not None else range(num)),
            step=Step(progress=progress),
        )

    return make
