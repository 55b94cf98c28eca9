"""Rows with small pictures, and the small server."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.stages.caption.endpoint import CaptionEndpoint
from vlpipe.stages.chat_server.server import Running, any_caption
from vlpipe.stages.chat_server.settings import Settings
from vlpipe.stages.common.row import TEXTS, text

KINDS = {"PNG": {}, "JPEG": {"quality": 90}, "WEBP": {}}
Serve = Callable[..., Running]


def picture(number: int, size: tuple[int, int] = (48, 32), kind: str = "PNG", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    image = Image.new("RGB", size, (number % 256, number // 256, 99)).convert(mode)
    image.save(out, kind, **KINDS.get(kind, {}))
    return out.getvalue()


def rows(num: int, **columns: list[Any]) -> pa.Table:
    given: dict[str, Any] = {
        "id": [f"row{n}" for n in range(num)],
        "url": [f"http://web.test/{n}.png" for n in range(num)],
        "texts": pa.array([[text(f"alt {n}", "web")] for n in range(num)], TEXTS),
        "image": pa.array([picture(n) for n in range(num)], pa.binary()),
    }
    return pa.table(given | columns)


def stage(server: Running, **more: Any) -> CaptionEndpoint:
    given: dict[str, Any] = {"model": "demo", "prompt": "Describe the picture."}
    if "prompts" in more:
        del given["prompt"]
    return CaptionEndpoint(base_url=server.url, **given | more)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts the small server: `serve(latency_s=...)`; `captioner` is what it says."""
    with ExitStack() as stack:

        def start(captioner: Any = any_caption, **settings: Any) -> Running:
            return stack.enter_context(Running(Settings(**{"latency_s": 0.005, **settings}), captioner))

        yield start
