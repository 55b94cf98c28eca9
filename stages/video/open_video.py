"""Opens an untrusted video file below a folder or fsspec root, as one of the known containers only.

FFmpeg accepts playlists, device names and URLs as a path, and a playlist may make it open other files. The path is
therefore passed as `file:PATH` (names may start with "-") or as an open fsspec file, and only CONTAINERS are tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.video.budget import Budget, said

if TYPE_CHECKING:
    from av.container import InputContainer

# FFmpeg's names of the containers used on the web; none of these opens another file.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,mpegvideo,asf,ogg,ivf,h264,hevc,gif,rm,dv"
)
BUFFER_BYTES = 1 << 20  # of an fsspec file: fewer, larger reads


def need_av() -> Any:
    """Returns the module `av` (PyAV). Raises VlpipeError with the pip command if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise VlpipeError("reading video needs PyAV: pip install 'vlpipe[video]'") from error
    av.logging.set_level(None)  # no log output; broken packets are reported as exceptions
    return av


@contextmanager
def container(
    file: str | Any, video: str, *, timeout_s: float, max_pixels: int, buffer_bytes: int | None = None
) -> Iterator[InputContainer]:
    """Yields the PyAV container of a file, as yielded by `video_file`, or of any object with `read`, `seek` and `tell`.

    video: its path below the root, for error texts. timeout_s: max duration of opening or a read, for local files.
    buffer_bytes: read at once; default: BUFFER_BYTES. Raises RowFault: broken_video, deadline (slow reads).
    """
    av = need_av()
    try:
        opened = av.open(
            file,
            mode="r",
            options={
                "max_pixels": str(max_pixels),
                "threads": "1",
            },  # applied while FFmpeg probes the streams
            container_options={"format_whitelist": CONTAINERS},
            metadata_errors="replace",
            timeout=timeout_s if isinstance(file, str) else None,
            buffer_size=buffer_bytes or BUFFER_BYTES,
        )
    except av.error.ExitError as error:
        raise RowFault("deadline", f"{video}: opening took more than {timeout_s:g} s") from error
    except (av.FFmpegError, ValueError) as error:  # FFmpeg also reports refused sizes as "no memory"
        raise RowFault("broken_video", f"{video}: {said(error)}") from error
    with opened:
        yield opened


@contextmanager
def video_file(root: str, video: str, num_bytes: int | None, *, opened: bool = False) -> Iterator[Any]:
    """Yields the path for FFmpeg of the file `video` below a local folder, or the open file below an fsspec URL.

    num_bytes: expected size of the file; None: not checked. opened: yield an open file for local folders too.
    Raises RowFault: bad_path, no_file, video_changed (its size is not `num_bytes`).
    """
    if "://" not in root:
        path = _below(root, video)
        if not os.path.isfile(path):
            raise RowFault("no_file", f"there is no file {video} in the folder given by `videos`")
        _same_size(video, os.path.getsize(path), num_bytes)
        if opened:
            with open(path, "rb", buffering=0) as local:
                yield local
        else:
            yield f"file:{path}"
        return
    import fsspec

    fs, base = fsspec.core.url_to_fs(root)
    if ".." in video.split("/"):
        raise RowFault("bad_path", f"the path {video!r} leads out of the folder given by `videos`")
    path = f"{base.rstrip('/')}/{video}"
    try:
        size = fs.size(path)
    except FileNotFoundError as error:
        raise RowFault("no_file", f"there is no file {video} in the folder given by `videos`") from error
    _same_size(video, size, num_bytes)
    with fs.open(path, "rb") as file:
        yield file


def _below(root: str, video: str) -> str:
    from vlpipe.stages.common.loopback import inside, leads_out

    path = None if video.startswith("/") else inside(root, video)
    if path is None:
        raise RowFault("bad_path", leads_out(video, "videos"))
    return path


def _same_size(video: str, size: int, num_bytes: int | None) -> None:
    if num_bytes is not None and size != num_bytes:
        raise RowFault("video_changed", f"{video} has {size} bytes, but its row has num_bytes: {num_bytes}")


def packets(opened: InputContainer, stream: Any, budget: Budget) -> Iterator[Any]:
    """Yields packets from the current position to the end. Two errors in a row count as the end of a truncated file."""
    errors = (
        need_av().FFmpegError,
        IndexError,
    )  # IndexError: a stream that appears in the middle of the file
    found, num_errors = opened.demux(stream), 0
    while num_errors < 2:
        budget.check()
        try:
            packet = next(found, None)
        except errors as error:
            budget.bad(error)
            found, num_errors = opened.demux(stream), num_errors + 1
            continue
        if packet is None:
            return
        num_errors = 0
        if packet.size:
            yield packet
