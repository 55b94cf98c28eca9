"""BEiT in transformers (`masked_codes`), and DALL-E's encoder (`codebook`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlpipe.models.layouts.images.beit import codebook, masked_codes
from vlpipe.models.layouts.table import Layout

CODEBOOK = Layout(
    classes={"codebook": "FlavaImageCodebook"},
    entries=codebook.entries,
    read=codebook.read,
    write=codebook.write,
)


class BeitLayout(Layout):
    """Reads and writes both classes of the system."""

    def load(self, cls: Any, folder: Path, changes: Mapping[str, Any]) -> Any:
        """Returns our model of a folder. Raises ValueError for weights missing or left over."""
        if cls.__name__ == "ImageCodebook":
            return CODEBOOK.load(cls, folder, changes)
        return super().load(cls, folder, changes)

    def check(self, model: Any, kind: str | None) -> str:
        """As in `Layout`, for either class."""
        return CODEBOOK.check(model, kind) if _is_codebook(model) else super().check(model, kind)

    def export(self, model: Any, folder: Path, kind: str | None) -> None:
        """Writes `model` as its class of transformers."""
        if _is_codebook(model):
            CODEBOOK.export(model, folder, kind)
        else:
            super().export(model, folder, kind)


def _is_codebook(model: Any) -> bool:
    return type(model).__name__ == "ImageCodebook"


LAYOUT = BeitLayout(
    classes={"masked_codes": "BeitForMaskedImageModeling"},
    entries=masked_codes.entries,
    read=masked_codes.read,
    write=masked_codes.write,
)
