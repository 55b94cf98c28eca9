"""The films of these tests, and the real files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `films`


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """data(name): a file or folder of the real data, or the test is skipped."""
    root = Path(os.environ.get("VLPIPE_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"real data not found: {root / name} (set VLPIPE_DATA)")
        return root / name

    return find
