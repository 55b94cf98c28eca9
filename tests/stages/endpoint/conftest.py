"""The small server as a fixture; attempts follow each other faster than in earnest."""

from __future__ import annotations

import pytest
from endpoint_toys import serve as serve

from vlpipe.stages.endpoint import ask


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "BACKOFF_S", 0.02)
