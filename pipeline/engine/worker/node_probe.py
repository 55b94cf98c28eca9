"""Checks which code and files of a run a node sees. Sent to the node by value, so it imports only the standard library."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import platform

DRIVER_FOLDER = (
    "VLPIPE_DRIVER_FOLDER"  # the driver's working directory; workers on other nodes run in a copy of it
)


def source_digest(module: str) -> str:
    """Returns the sha256 of the source of a top-level module or package, independent of its path; empty if not found."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    files: dict[str, str] = {}
    for base in spec.submodule_search_locations or ():
        for folder, folders, names in os.walk(base, followlinks=True):
            folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
            for name in names:
                if name.endswith(".py"):
                    path = os.path.join(folder, name)
                    files.setdefault(os.path.relpath(path, base), path)
    if not files and spec.origin and os.path.isfile(spec.origin):
        files[os.path.basename(spec.origin)] = spec.origin
    digest = hashlib.sha256()
    for rel in sorted(files):
        with open(files[rel], "rb") as file:
            digest.update(f"{rel} {hashlib.sha256(file.read()).hexdigest()}\n".encode())
    return digest.hexdigest() if files else ""


def on_this_node(path: str) -> str:
    """Returns the path of a driver's file on this node: the same path, or in the copy of the driver's folder."""
    folder = os.environ.get(DRIVER_FOLDER, "")
    if folder and not os.path.exists(path) and os.path.commonpath([folder, os.path.abspath(path)]) == folder:
        return os.path.join(os.getcwd(), os.path.relpath(path, folder))
    return path


def look(modules: dict[str, str], files: list[tuple[str, int]], root: bytes) -> dict[str, list[str]]:
    """Returns what differs on this node from the driver: `missing` modules, `unseen` files, `problems` with the root.

    modules: name -> digest; files: (path, size in bytes, or -1 for a folder); root: a pickled call that reads from the root,
    or empty.
    """
    missing = [name for name, digest in modules.items() if source_digest(name) != digest]
    unseen = []
    for path, size in files:
        here = on_this_node(path)
        if not (os.path.isdir(here) if size < 0 else os.path.isfile(here) and os.path.getsize(here) == size):
            unseen.append(path)
    problems = []
    if root and not missing:
        try:
            problems = pickle.loads(root)()
        except ImportError as error:
            problems = [
                f"cannot import vlpipe: {error}; install what it needs there, for Python {platform.python_version()}"
            ]
    return {"missing": missing, "unseen": unseen, "problems": problems}
