from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


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
