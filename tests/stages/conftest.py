"""Fixtures of several packages: a tiny random BLIP on disk, rows, a hostile web server, where the real data is."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import heavy
from vlpipe.stages.common.row import LISTED, TEXTS, text

sys.path.insert(0, str(Path(__file__).parent))  # for `threat_server` and `clips`

from threat_server import Server, noise

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


@pytest.fixture(scope="session")
def photos(data: Callable[[str], Path]) -> list[Path]:
    return sorted(data("flickr8k").glob("images/*.jpg"))


@pytest.fixture(scope="session")
def dup_images(data: Callable[[str], Path]) -> Path:
    return data("dup_images")


@pytest.fixture(scope="session")
def alt_texts(data: Callable[[str], Path]) -> list[str]:
    """25,833: those of CC3M's validation set, then raw ones of LAION."""
    folder = data("alttext")
    lines = (folder / "cc3m_validation.tsv").read_text(encoding="utf-8").splitlines()
    raw = pq.read_table(folder / "laion_10000.parquet", columns=["TEXT"])["TEXT"].to_pylist()
    return [line.split("\t")[0] for line in lines] + [t or "" for t in raw]


@pytest.fixture(scope="session")
def dev_captions(data: Callable[[str], Path]) -> list[str]:
    """The 5,000 captions of 1,000 photos of Flickr8k."""
    lines = (data("flickr8k") / "dev.jsonl").read_text().splitlines()
    return [caption for line in lines for caption in json.loads(line)["captions"]]


@pytest.fixture
def text_rows() -> Callable[..., pa.Table]:
    """text_rows({id: [web text or whole entry, ...]}): rows of schema LISTED."""

    def make(texts: Mapping[str, Sequence[str | dict[str, Any]]]) -> pa.Table:
        entries = [[text(t, "web") if isinstance(t, str) else t for t in ts] for ts in texts.values()]
        return pa.table([list(texts), [f"http://x.test/{i}" for i in texts], entries], schema=LISTED)

    return make


def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def decoy() -> Iterator[Server]:
    """Listens on the loopback like any service of this machine, and remembers who asked."""
    yield from running(Server())


@pytest.fixture
def threats(decoy: Server) -> Iterator[Server]:
    yield from running(Server(decoy.port))


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """picture(kind, size, seed): an encoded image of noise."""
    return noise
