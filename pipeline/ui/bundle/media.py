"""Pictures and videos of a bundle. Pictures are decoded and written anew, so that no byte of a stranger's file is in it."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

from vlpipe.pipeline.ui.pictures import MAX_PIXELS

SIDE = 512  # pixels; larger pictures are made smaller
TINY = 96  # pictures up to this side are PNG, others JPEG
QUALITY = 82
MAX_VIDEO_BYTES = 64 << 20  # of all videos together


@dataclass(frozen=True, slots=True)
class Picture:
    """name: the file in the bundle; size: width and height of the upright original, in pixels, which boxes refer to."""

    name: str
    size: tuple[int, int]


@dataclass
class Media:
    """Writes pictures and videos below `folder`, each once, however many rows show it."""

    folder: Path
    _pictures: dict[str, Picture | None] = field(default_factory=dict)
    _videos: dict[str, str] = field(default_factory=dict)
    _video_bytes: int = 0

    def picture(self, data: bytes) -> Picture | None:
        """Returns the picture of an image file; None if it cannot be decoded, or has more than MAX_PIXELS."""
        key = hashlib.sha256(data).hexdigest()[:24]
        if key not in self._pictures:
            self._pictures[key] = self._write(data, key)
        return self._pictures[key]

    def _write(self, data: bytes, key: str) -> Picture | None:
        try:
            with Image.open(io.BytesIO(data)) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    return None
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises
            return None
        size, tiny = image.size, max(image.size) <= TINY
        image.info = {}  # else Pillow would copy comments and profiles
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        name = f"pictures/{key}.{'png' if tiny else 'jpg'}"
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        image.save(path, "PNG") if tiny else image.save(path, "JPEG", quality=QUALITY)
        return Picture(name, size)

    def video(self, path: str) -> str:
        """Returns the name of a copy of a video; empty if the bundle's videos would have more than MAX_VIDEO_BYTES."""
        if path not in self._videos:
            num_bytes = os.path.getsize(path)
            if self._video_bytes + num_bytes > MAX_VIDEO_BYTES:
                return ""
            self._video_bytes += num_bytes
            ending = os.path.splitext(path)[1].lower()
            name = f"videos/{len(self._videos):04d}{ending}"
            (self.folder / "videos").mkdir(exist_ok=True)
            shutil.copyfile(path, self.folder / name)
            self._videos[path] = name
        return self._videos[path]
