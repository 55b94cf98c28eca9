"""Which classes read folders of other libraries: one of each layout, whatever room it is in."""

from pathlib import Path

import vlpipe.models.layouts  # type: ignore[import-untyped, unused-ignore]
from vlpipe.models.folder import _shipped


def test_every_layout_is_found_in_its_room() -> None:
    (folder,) = map(Path, vlpipe.models.layouts.__path__)
    layouts = {path.stem for path in folder.glob("*/*") if path.stem[0] != "_" and path.name != "__pycache__"}
    found = {cls.__module__.split(".")[4] for cls in _shipped()}
    assert {"blip", "clip", "vit"} <= found
    assert found <= layouts
    assert {"blip", "vlpipe.models.blip", "gpt2"} <= {name for cls in _shipped() for name in cls.FORMATS}
