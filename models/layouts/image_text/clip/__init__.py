"""CLIP in transformers (`hf`) and in open_clip (`open_clip`); the table of its ViT (`tower`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlpipe.models.layouts.image_text.clip import hf, open_clip
from vlpipe.models.layouts.table import Layout


class ClipLayout(Layout):
    """Reads a transformers folder, and one of open_clip, which has no `config.json`; writes both."""

    def load(self, cls: Any, folder: Path, changes: Mapping[str, Any]) -> Any:
        """Returns our model of either folder. Raises ValueError for weights missing or left over."""
        if (folder / "config.json").is_file():
            return super().load(cls, folder, changes)
        return open_clip.load(cls, folder, changes)

    def check(self, model: Any, kind: str | None) -> str:
        """As in `Layout`: neither library has a bag of words or our other image encoders, and transformers has no ResNet."""
        kind, c = super().check(model, kind), model.config
        if c.text != "transformer":
            raise ValueError(f"export: no other library has CLIP with text: {c.text}")
        if c.vision is not None:
            raise ValueError(f"export: no other library has CLIP with vision: {c.vision['use']}")
        if kind == "model" and not isinstance(c.vision_layers, int):
            raise ValueError("export: transformers has no CLIP with a ResNet; set kind: open_clip")
        return kind


LAYOUT = ClipLayout(
    classes={"model": "CLIPModel"},
    entries=hf.entries,
    read=hf.read,
    write=hf.write,
    others={"open_clip": open_clip.export},
)
