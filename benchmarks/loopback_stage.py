"""The real fetching stage, but some hosts are at a port of this machine that listens already."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

from vlpipe.stages.fetching.images import FetchImages


@dataclass(frozen=True, kw_only=True)
class LoopbackImages(FetchImages):
    """ports: host -> port; nothing else differs, all guards are on."""

    NOT_IN_KEY: ClassVar[frozenset[str]] = FetchImages.NOT_IN_KEY | {"ports"}

    ports: dict[str, int]

    def loopback(self) -> AbstractContextManager[Mapping[str, int]]:
        return nullcontext(self.ports)
