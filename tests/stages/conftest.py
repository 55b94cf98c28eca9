"""A tiny random BLIP on disk, and image rows, for the stages that compute with a model; where the real data is."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models.blip import Blip
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import heavy
from vlpipe.stages.common.row import TEXTS

# MKL's results then do not depend on a row's place in its batch; read at its first use in a process.
os.environ.setdefault("MKL_CBWR", "AUTO")

WORDS = "a red blue green yellow small large circle square triangle "
WORDS += "star above below left of right the on with two dogs"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """8,000 parameters, scaled up so that different images get different captions and scores."""
    folder = tmp_path_factory.mktemp("blip")
    tokenizer = Tokenizer.train([WORDS] * 20, 120)
    torch.manual_seed(0)
    spec = {
        "image_size": 16,
        "patch_size": 8,
        "vision_width": 32,
        "vision_layers": 1,
        "vision_heads": 2,
        "text_width": 32,
        "text_layers": 2,
        "text_heads": 2,
        "max_text_length": 24,
        "embed_dim": 8,
    }
    model = Blip.from_spec(spec, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    model.save(folder)
    tokenizer.save(folder / "tokenizer")
    return Weights(path=str(folder), digest="weights-digest")


def png(seed: int, size: tuple[int, int] = (20, 24)) -> bytes:
    """A blurred random picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def image_rows() -> Callable[..., pa.Table]:
    """image_rows(texts per row, images=None): rows `row0`, `row1`, ... each with its own picture."""

    def make(texts: list[list[dict[str, Any]]], images: list[bytes] | None = None) -> pa.Table:
        pictures = [png(seed) for seed in range(len(texts))] if images is None else images
        schema = pa.schema([("id", pa.string()), ("texts", TEXTS), heavy("image", pa.binary())])
        ids = [f"row{i}" for i in range(len(texts))]
        return pa.table([ids, pa.array(texts, TEXTS), pa.array(pictures, pa.binary())], schema=schema)

    return make


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """data(name): a file or folder of the real data, or the test is skipped."""
    root = Path(os.environ.get("VLPIPE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"real data not found: {root / name} (set VLPIPE_DATA)")
        return root / name

    return find
