"""A world small enough to learn in seconds: one coloured square in one corner, and a text that says so."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.train.train import Train

SCHEMA = pa.schema([*LISTED, *IMAGE_FIELDS])
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230), "white": (240, 240, 240)}
CORNERS = {"top left": (0, 0), "top right": (8, 0), "bottom left": (0, 8), "bottom right": (8, 8)}
SHADES = (0, 40, 80)
MODEL = {
    "image_size": 16,
    "patch_size": 8,
    "vision_width": 32,
    "vision_layers": 1,
    "vision_heads": 2,
    "text_width": 32,
    "text_layers": 1,
    "text_heads": 2,
    "max_text_length": 16,
    "embed_dim": 16,
    "position": "sincos",
}


def picture(colour: str, corner: str, shade: int) -> bytes:
    image = Image.new("RGB", (16, 16), (shade, shade, shade))
    image.paste(COLOURS[colour], (*CORNERS[corner], CORNERS[corner][0] + 8, CORNERS[corner][1] + 8))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def rows() -> list[dict[str, Any]]:
    """48 images: 4 colours x 4 corners x 3 shades."""
    return [
        {
            "id": f"{colour} {corner} {shade}",
            "url": "",
            "texts": [text(f"a {colour} square at the {corner}", "web")],
            "sha256": None,
            "format": "PNG",
            "width": 16,
            "height": 16,
            "image": picture(colour, corner, shade),
        }
        for colour, corner, shade in product(COLOURS, CORNERS, SHADES)
    ]


@pytest.fixture
def squares(tmp_path: Path) -> Dataset:
    return dataset(tmp_path, pa.Table.from_pylist(rows(), SCHEMA), name="squares", shard_rows=20)


@pytest.fixture(scope="session")
def make_rows() -> Callable[[], list[dict[str, Any]]]:
    return rows


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Train]:
    """`Train` with small defaults; parameters replace them."""
    folder = tmp_path / "vocabulary"
    Tokenizer.train([row["texts"][0]["text"] for row in rows()], vocab_size=100).save(folder)

    def make(**more: Any) -> Train:
        model = {"use": "blip:Blip", **MODEL, **more.pop("model", {})}
        return Train(
            **{
                "model": model,
                "tokenizer": File(path=str(folder)),
                "objectives": [{"use": "itc:Itc", "queue_size": 32}, "itm:Itm", "lm:Lm"],
                "teachers": {"ema": {"momentum": 0.995}},
                "streams": {"text": {"max_length": 12}},
                "batch_size": 16,
                "steps": 8,
                "lr": 1e-3,
                "log_every": 1,
                "loader_threads": 1,
                **more,
            }
        )

    return make
