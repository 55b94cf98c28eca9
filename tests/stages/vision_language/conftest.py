from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.vision_language import tiny
from vlpipe.pipeline.files import Weights


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Weights]:
    """captioner(kind): a tiny random model of transformers on disk; kinds: `tiny.MAKERS`."""
    made: dict[str, Weights] = {}

    def find(kind: str) -> Weights:
        if kind not in made:
            folder: Path = tiny.make(kind, tmp_path_factory.mktemp("captioner") / f"tiny-{kind}")
            made[kind] = Weights(path=str(folder), digest=f"digest-{kind}")
        return made[kind]

    return find
