"""The user's cache folder, and files in it that only the user can read."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def private_folder() -> Path:
    """Returns `$XDG_CACHE_HOME/vlpipe`, or `~/.cache/vlpipe`; created if needed, accessible only to its owner.

    Raises OSError if it cannot be created or belongs to another user.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"  # XDG: relative paths are invalid
    folder = home / "vlpipe"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user, so no cache is kept in it")
    folder.chmod(0o700)
    return folder


def write_private(path: Path, data: bytes) -> None:
    """Writes a file atomically, readable only by its owner."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
