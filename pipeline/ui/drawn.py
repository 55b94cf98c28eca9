"""What is drawn over pictures and beside videos: boxes of regions and objects, subtitles, the file of a clip."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from vlpipe.pipeline.errors import printable
from vlpipe.pipeline.inspect.rows.table import RowTable
from vlpipe.pipeline.ui.row_sources import rows_of
from vlpipe.pipeline.ui.shapes import plain
from vlpipe.pipeline.ui.site import Answer, Missing, Query, Root, Site

MAX_BOXES = 100
CHUNK_BYTES = 1 << 20  # of a video, per request
VIDEO_KINDS = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
}


def boxes_of(site: Site, table: RowTable, at: int, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the boxes on a row's image, from the columns `regions` and `objects`: [x1, y1, x2, y2] in pixels of the
    upright image, a label, a score."""
    found = [
        {
            "box": plain(one.get("box")),
            "label": plain(one.get("label") or "", 80),
            "score": None,
            "from": "objects",
        }
        for one in (row.get("objects") or [])[:MAX_BOXES]
        if isinstance(one, Mapping)
    ]
    if "regions" in table.heavy:
        regions = site.heavy.value(table, at, "regions") or []
        tags = row.get("region_tags") or []
        for k, one in enumerate(regions[:MAX_BOXES]):
            label = tags[k] if len(tags) == len(regions) else f"class {one.get('obj')}"
            score = plain(one.get("obj_conf"))
            found.append(
                {"box": plain(one.get("box")), "label": plain(label, 80), "score": score, "from": "regions"}
            )
    return found


def cues_of(row: Mapping[str, Any]) -> list[tuple[float, float, str]]:
    """Returns (start, end, text) of the subtitles of a row: its cues, or else the texts of a clip for its whole length."""
    cues = row.get("cues")
    if isinstance(cues, list):
        return [
            (one["start_s"], one["end_s"], str(one.get("text") or ""))
            for one in cues
            if one and one.get("start_s") is not None and one.get("end_s") is not None
        ]
    if row.get("start_s") is None or row.get("end_s") is None:
        return []
    texts = [str(one.get("text") or "") for one in row.get("texts") or [] if one]
    return [(row["start_s"], row["end_s"], " / ".join(texts))] if texts else []


def cues_view(site: Site, root: Root, query: Query) -> Answer:
    """Returns the subtitles of a row as WebVTT."""
    row = rows_of(root, query.text("step")).rows([query.whole("at")])[0]
    return Answer(200, webvtt(cues_of(row)).encode(), "text/vtt; charset=utf-8")


def webvtt(cues: list[tuple[float, float, str]]) -> str:
    """Returns a WebVTT file. Texts are escaped: `<` begins a tag there, and `-->` a time."""
    blocks = []
    for start, end, text in cues:
        said = " ".join(
            printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split()
        )
        if end > start >= 0:
            blocks.append(f"{_clock(start)} --> {_clock(end)}\n{said}\n")
    return "\n".join(["WEBVTT\n", *blocks])


def _clock(seconds: float) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{thousandths:03d}"


def has_media(root: Root, folder: str, row: Mapping[str, Any]) -> bool:
    """True if the row names a video that is there."""
    return bool(row.get("video")) and media_path(root, folder, str(row["video"])) is not None


def media_path(root: Root, folder: str, video: str) -> str | None:
    """Returns the local file of a row's video, None if there is none. The column holds a path below the folder `videos` of
    the step or of one that it reads; a path that leaves that folder, also by a link, names nothing."""
    if os.path.splitext(video)[1].lower() not in VIDEO_KINDS or "\0" in video:
        return None
    for base in _video_folders(root, folder):
        path = os.path.realpath(os.path.join(base, video))
        inside = os.path.commonpath([path, os.path.realpath(base)]) == os.path.realpath(base)
        if inside and os.path.isfile(path):
            return path
    return None


def _video_folders(root: Root, folder: str) -> Iterator[str]:
    """Yields the folders that the parameter `videos` of the step, and of the steps above it, names."""
    state, todo, seen = root.reader.state(), [folder], set[str]()
    while todo:
        one = state.step(todo.pop(0))
        if one.folder in seen:
            continue
        seen.add(one.folder)
        todo += one.inputs
        videos = one.params.get("videos")
        if isinstance(videos, str) and "://" not in videos:
            yield os.path.abspath(os.path.expanduser(videos))
        elif isinstance(videos, Mapping) and root.store.is_local:
            for maker in (state.step(each) for each in one.reads):
                if maker.name == videos.get("from"):
                    yield root.store.path(f"{maker.folder}/artifacts/{videos.get('path') or ''}".rstrip("/"))


def media_view(site: Site, root: Root, query: Query) -> Answer:
    """Returns a part of a row's video, as the header Range asks, at most CHUNK_BYTES."""
    folder = query.text("step")
    row = rows_of(root, folder).rows([query.whole("at")], ["video"])[0]
    path = media_path(root, folder, str(row.get("video") or ""))
    if path is None:
        raise Missing("the row's video is not on this machine")
    size = os.path.getsize(path)
    start, stop = asked_bytes(query.headers.get("range", ""), size)
    with open(path, "rb") as file:
        file.seek(start)
        body = file.read(stop - start)
    kind = VIDEO_KINDS[os.path.splitext(path)[1].lower()]
    headers = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return Answer(206, body, kind, {**headers, "Cache-Control": "no-store"})


def asked_bytes(header: str, size: int) -> tuple[int, int]:
    """Returns (first byte, byte after the last) of a Range header with one range; without one, the first CHUNK_BYTES.

    Raises Missing if the range begins behind the end of the file.
    """
    first, _, last = header.removeprefix("bytes=").partition("-")
    start = int(first) if first.isascii() and first.isdigit() else 0
    if not first and last.isascii() and last.isdigit():
        start = max(0, size - int(last))
    stop = int(last) + 1 if first and last.isascii() and last.isdigit() else size
    if start >= size:
        raise Missing("the range begins behind the end of the file")
    return start, max(start + 1, min(stop, start + CHUNK_BYTES, size))
