"""Sphinx configuration: `make docs` builds the pages of this folder into docs/_build, warnings being errors.

Pages of the reference are written here from the stages themselves before Sphinx reads the folder.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "vlpipe"
author = "The vlpipe developers"
copyright = author
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
html_theme = "furo"
html_title = "vlpipe"
exclude_patterns = ["_build", "log.md"]  # log.md: notes for developers, read on the code host
suppress_warnings = ["myst.xref_missing"]


def write_reference(app: Any) -> None:
    """Writes reference/ROOM.md for each room of stages, and their index."""
    from vlpipe.pipeline.describe.catalogue import entries
    from vlpipe.pipeline.describe.page import index_page, room_page

    folder = HERE / "reference"
    folder.mkdir(exist_ok=True)
    rooms = {room: [e.use for e in inside] for room, inside in groupby(entries(), key=lambda e: e.room)}
    pages = {
        "index": index_page(list(rooms)),
        **{room: room_page(room, uses) for room, uses in rooms.items()},
    }
    for old in folder.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Registers the hook with Sphinx; a mermaid block becomes a literal block, which is readable as it is."""
    from mermaid_block import Mermaid

    app.add_directive("mermaid", Mermaid)
    app.connect("builder-inited", write_reference)
