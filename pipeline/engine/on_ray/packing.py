"""What is copied to a cluster's nodes: vlpipe as one package, the folder that vlpipe is called in, modules outside it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Stage
from vlpipe.pipeline.storage.store import Store

# Folders that are not copied: anywhere, or with a slash in the working directory alone, since a package may have a module of
# that name. Folders named `.*_cache` are not either.
NOT_SHIPPED = (".git", ".venv", "venv", "/runs", "node_modules", "__pycache__")
MAX_SHIPPED_BYTES = 200 * 2**20
MAX_SHIPPED_FILES = 50_000
OWN = "vlpipe"


def modules_of(stage: Stage) -> Iterator[str]:
    """Yields top-level module names of a stage, and of the stages and parts it contains."""
    stages = [stage]
    for one in stages:
        if hasattr(one, "__dataclass_fields__"):
            yield type(one).__module__.partition(".")[0]
            stages.extend(getattr(one, name) for name in one.__dataclass_fields__)


def place(module: str) -> str:
    """Returns the absolute path of a top-level module's folder or file."""
    found = sys.modules[module]
    if getattr(found, "__path__", None):
        return os.path.abspath(next(iter(found.__path__)))
    assert found.__file__
    return os.path.abspath(found.__file__)


def own_source(folder: str) -> str:
    """Copies vlpipe into `folder` as one package and returns its path: a development install consists of links."""
    to = os.path.join(folder, OWN)
    for base in sys.modules[OWN].__path__:
        for room in sorted(os.listdir(base)):
            if os.path.isdir(os.path.join(base, room)) and not os.path.exists(os.path.join(to, room)):
                shutil.copytree(
                    os.path.join(base, room),
                    os.path.join(to, room),
                    ignore=shutil.ignore_patterns("__pycache__"),
                )
    return to


def root_below(store: Store) -> list[str]:
    """Returns the exclude pattern for the root if it lies in the folder that is copied; else an empty list."""
    if not store.is_local or not Path(store.url).is_relative_to(os.getcwd()):
        return []
    return ["/" + os.path.relpath(store.url, os.getcwd())]


def check_size(folder: str, leave_out: Sequence[str], modules: Sequence[str]) -> None:
    """Raises VlpipeError if the folder is too large to be copied to the nodes."""
    num_bytes = num_files = 0
    for at, folders, names in os.walk(folder, followlinks=True):
        rel = os.path.relpath(at, folder)
        folders[:] = [
            name
            for name in folders
            if name not in leave_out
            and not (name.startswith(".") and name.endswith("_cache"))
            and "/" + os.path.normpath(os.path.join(rel, name)) not in leave_out
        ]
        num_files += len(names)
        num_bytes += sum(os.path.getsize(p) for name in names if os.path.isfile(p := os.path.join(at, name)))
        if num_bytes > MAX_SHIPPED_BYTES or num_files > MAX_SHIPPED_FILES:
            what = f"the code of {', '.join(modules)}" if modules else "the lists and weights"
            raise VlpipeError(
                f"a node does not see {what} in {folder}, and that folder is too large to be copied to it (over "
                f"{MAX_SHIPPED_BYTES >> 20} MB or {MAX_SHIPPED_FILES:,} files without {', '.join(NOT_SHIPPED)}); "
                "put it where every node sees it, or call vlpipe in a folder with only its code and lists"
            )
