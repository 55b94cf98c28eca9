"""Downloads a missing video with a command that the user sets, such as yt-dlp; off unless a stage's `download` is set.

The command writes into a temporary folder. Its files are moved into the folder `videos` after it succeeds, so a video is
complete or absent. Rate limits and permissions are the responsibility of the command and its user.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vlpipe.pipeline.errors import RowFault, VlpipeError


@dataclass(frozen=True, kw_only=True)
class Download:
    """A command that downloads one video. It runs without a shell and is killed after `timeout_s` seconds.

    command: list of arguments. {video_id} in them is replaced by the id, {folder} by the folder it must write to. Raises
    VlpipeError if {video_id} is missing, or if an argument starts with it and no argument before is "--": an id that starts
    with "-" would be parsed as an option. Example:

    command: ["yt-dlp", "-f", "mp4", "--write-auto-subs", "-o", "{folder}/%(id)s.%(ext)s", "--",
    "https://www.youtube.com/watch?v={video_id}"]
    """

    command: tuple[str, ...]
    timeout_s: Annotated[float, Field(gt=0)] = 1800.0

    def __post_init__(self) -> None:
        ids = [place for place, part in enumerate(self.command) if part.startswith("{video_id}")]
        if not any("{video_id}" in part for part in self.command):
            raise VlpipeError(
                f"download.command must contain {{video_id}}, which stands for the id of the video; got {list(self.command)}"
            )
        if ids and "--" not in self.command[: ids[0]]:
            raise VlpipeError(
                'download.command: put "--" before {video_id}: an id that starts with "-" would be read as an option'
            )


def fetch_with(download: Download, video_id: str, videos: str, endings: Sequence[str]) -> str:
    """Downloads one video into the folder `videos`; returns the name of its file. endings: accepted file name endings.

    Raises RowFault: download_failed, download_timeout, no_file; VlpipeError if `videos` is a URL or the program is missing.
    """
    if "://" in videos:
        raise VlpipeError(
            f"`download` saves videos into the folder given by `videos`, which must be local, got {videos}"
        )
    os.makedirs(videos, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=videos) as folder:
        command = [
            part.replace("{video_id}", video_id).replace("{folder}", folder) for part in download.command
        ]
        _run(command, download.timeout_s, video_id)
        made = sorted(path for path in Path(folder).iterdir() if path.is_file())
        names = [path.name for path in made if path.stem == video_id and path.suffix in endings]
        if not names:
            got = ", ".join(path.name for path in made) or "nothing"
            raise RowFault(
                "no_file",
                f"download.command must write {' or '.join(video_id + ending for ending in endings)}, but wrote {got}",
            )
        for path in made:  # subtitles too; the video last, as it marks the download as complete
            if path.name != names[0]:
                _move(path, videos)
        _move(Path(folder) / names[0], videos)
    return names[0]


def _run(command: Sequence[str], timeout_s: float, video_id: str) -> None:
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # so that its own children are killed with it
            )
        except FileNotFoundError as error:
            raise VlpipeError(
                f"download.command: there is no program {command[0]!r}; install it, or give its full path"
            ) from error
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RowFault(
                "download_timeout", f"{video_id}: the download took more than {timeout_s:g} s"
            ) from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        errors.seek(0)
        lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    if code:
        raise RowFault("download_failed", f"{video_id}: {lines[-1][:300] if lines else f'exit {code}'}")


def _move(path: Path, folder: str) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(path, os.path.join(folder, path.name))
