"""Reads the images of an evaluation set from a folder and its subfolders: all, or those that the set names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from vlpipe.pipeline.errors import VlpipeError


def folder_images(path: str, named: Sequence[str] | None) -> Iterator[tuple[str, bytes]]:
    """Yields (path relative to the folder, bytes). named: files as in the set (val2014/COCO_val2014_1.jpg); None: all files.

    A named file is found by its path, else by its base name. Raises VlpipeError if one is missing or ambiguous.
    """
    root = Path(path)
    if not root.is_dir():
        raise VlpipeError(f"`images` must be a folder, but there is no folder {path}")
    files = (f.relative_to(root) for f in root.rglob("*") if f.is_file() and not f.name.startswith("."))
    paths = sorted(f.as_posix() for f in files)
    for name in paths if named is None else _find(paths, named, path):
        yield name, (root / name).read_bytes()


def _find(paths: Sequence[str], named: Sequence[str], path: str) -> list[str]:
    by_path = set(paths)
    by_name: dict[str, list[str]] = {}
    for file in paths:
        by_name.setdefault(PurePosixPath(file).name, []).append(file)
    found: list[str] = []
    missing: list[str] = []
    for name in dict.fromkeys(named):
        places = [name] if name in by_path else by_name.get(PurePosixPath(name).name, [])
        if len(places) > 1:
            raise VlpipeError(
                f"images: the set names {name}, but {len(places)} files in {path} have this name: {places[0]}, {places[1]}"
            )
        (found if places else missing).extend(places or [name])
    if missing:
        raise VlpipeError(
            f"images: {len(missing):,} of {len(missing) + len(found):,} images that the set names are not below {path} "
            f"(first: {missing[0]}); to compare the texts and only the images present, list them as two sets"
        )
    return found
