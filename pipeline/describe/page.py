"""Pages of the reference in Markdown, one per room of stages."""

from __future__ import annotations

import json
from collections.abc import Sequence

from vlpipe.pipeline.describe.catalogue import Parameter, describe


def index_page(rooms: Sequence[str]) -> str:
    """Returns the page that lists the rooms."""
    listed = "\n".join(rooms)
    head = "# Stages\n\nWritten from the code. `vlpipe stages` prints the same."
    return f"{head}\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"


def room_page(room: str, uses: Sequence[str]) -> str:
    """Returns the page of a room: each stage with its docstring and a table of its parameters."""
    return "\n\n".join([f"# {room}", *(_stage(use) for use in uses)]) + "\n"


def _stage(use: str) -> str:
    found = describe(use)
    about = [_paragraph(one) for one in found.about.split("\n\n")]
    parts = [f"## `{use}`", f"A {found.kind} stage, version {found.version}.", *about]
    if found.parameters:
        rows = [_row(one) for one in found.parameters]
        parts.append("| parameter | type | default | |\n|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _paragraph(text: str) -> str:
    """Returns a paragraph of a docstring; the lines of a list stay lines."""
    lines = text.strip().splitlines()
    if lines and all(line.lstrip().startswith(("- ", "  ")) or line.startswith(" ") for line in lines):
        return "```text\n" + "\n".join(lines) + "\n```"
    return _escaped(" ".join(line.strip() for line in lines))


def _row(one: Parameter) -> str:
    default = "required" if one.required else f"`{json.dumps(one.default, ensure_ascii=False)}`"
    return (
        f"| `{one.name}` | {_cell(one.type)} | {default.replace('|', chr(92) + '|')} | {_cell(one.about)} |"
    )


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Returns a text with the signs that Markdown would read escaped outside of `code`."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # an odd number of backticks: none of them starts code
        parts = ["'".join(parts)]
    for i in range(0, len(parts), 2):
        for sign in "\\*_<>[]{}$":
            parts[i] = parts[i].replace(sign, "\\" + sign)
    return "`".join(parts)
