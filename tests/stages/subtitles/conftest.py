"""Real subtitle files, where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """data(name): a file or folder of the real data, or the test is skipped."""
    root = Path(os.environ.get("VLPIPE_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"real data not found: {root / name} (set VLPIPE_DATA)")
        return root / name

    return find
