"""Where the small inputs of public bug reports and reviews are; tests of them are skipped where there are none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("VLPIPE_CASES", Path(__file__).resolve().parents[4] / "shared" / "cases"))


@pytest.fixture(scope="session")
def case() -> Callable[[str], Path]:
    """case(name): a file or folder of the cases, or the test is skipped."""

    def find(name: str) -> Path:
        if not (ROOT / name).exists():
            pytest.skip(f"no cases of bug reports at {ROOT / name} (set VLPIPE_CASES)")
        return ROOT / name

    return find
