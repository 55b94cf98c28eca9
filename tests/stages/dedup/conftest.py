from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.stages.common.row import LISTED, text


def real_data(name: str) -> Path:
    """A folder of real data, found by VLPIPE_DATA or beside the repository; skips where it is absent."""
    root = Path(
        os.environ.get("VLPIPE_DATA") or Path(__file__).parents[3].resolve().parent / "shared" / "data"
    )
    if not (root / name).is_dir():
        pytest.skip(f"real data {name!r} is absent: set VLPIPE_DATA to the folder that holds it")
    return root / name


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the engine's default; in small products two threads on busy cores mostly wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    return sorted(real_data("flickr8k").glob("images/*.jpg"))


@pytest.fixture(scope="session")
def dup_images() -> Path:
    return real_data("dup_images")


@pytest.fixture(scope="session")
def alt_texts() -> list[str]:
    """25,833: those of CC3M's validation set, then raw ones of LAION."""
    folder = real_data("alttext")
    lines = (folder / "cc3m_validation.tsv").read_text(encoding="utf-8").splitlines()
    raw = pq.read_table(folder / "laion_10000.parquet", columns=["TEXT"])["TEXT"].to_pylist()
    return [line.split("\t")[0] for line in lines] + [t or "" for t in raw]


@pytest.fixture(scope="session")
def dev_captions() -> list[str]:
    """The 5,000 captions of 1,000 photos of Flickr8k."""
    lines = (real_data("flickr8k") / "dev.jsonl").read_text().splitlines()
    return [caption for line in lines for caption in json.loads(line)["captions"]]


@pytest.fixture
def text_rows() -> Callable[..., pa.Table]:
    """text_rows({id: [web text or whole entry, ...]}): rows of schema LISTED."""

    def make(texts: Mapping[str, Sequence[str | dict[str, Any]]]) -> pa.Table:
        entries = [[text(t, "web") if isinstance(t, str) else t for t in ts] for ts in texts.values()]
        return pa.table([list(texts), [f"http://x.test/{i}" for i in texts], entries], schema=LISTED)

    return make
