"""The workflows that are installed with the package."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable


def packaged_workflows() -> dict[str, str]:
    """Returns name -> path of the packaged workflows; those in folders have names such as `downstream/vqa`."""
    return dict(_below(resources.files("vlpipe.workflows"), ""))


def _below(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for one in folder.iterdir():
        if one.name.endswith(".yaml"):
            yield prefix + one.name.removesuffix(".yaml"), str(one)
        elif one.is_dir():
            yield from _below(one, f"{prefix}{one.name}/")
