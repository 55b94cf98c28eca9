"""Lists of prompt templates: those that are shipped, by kind of images, and files of a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.storage.text_lines import lines_of

SHIPPED = Path(__file__).with_name("templates.yaml")


@cache
def shipped() -> dict[str, tuple[str, ...]]:
    """Returns the lists of templates.yaml, by name."""
    found = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    return {name: tuple(templates) for name, templates in found.items()}


def list_problems(name: str) -> list[str]:
    """Returns an error text if there is no shipped list of this name; "" is none."""
    known = shipped()
    if not name or name in known:
        return []
    return [
        f"template_list: there is no list {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}"
    ]


def read_templates(path: str) -> Sequence[str]:
    """Returns the templates of a file: one per line; blank lines and those that start with # are left out.

    Raises VlpipeError, naming file and line, for one without {}, and for a file without templates or that is no text.
    """
    try:
        lines = lines_of(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise VlpipeError(f"template_file: {path} cannot be read as text ({error})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        template = line.strip()
        if template and not template.startswith("#"):
            if "{}" not in template:
                raise VlpipeError(f"template_file: {path}, line {number}: {template!r} has no {{}}")
            found.append(template)
    if not found:
        raise VlpipeError(f"template_file: {path} has no template")
    return found
