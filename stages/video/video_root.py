"""The root folder of videos. Rows store the path below it, size and sha256 of a file, so the root may move."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from vlpipe.pipeline.files import File

# A folder or fsspec URL, which is not hashed; or {from: STEP, path: NAME}.
VideosRoot: TypeAlias = Annotated[str | File, Field(union_mode="left_to_right")]


def root_path(videos: VideosRoot) -> str:
    """Returns the folder or fsspec URL that contains the videos."""
    return videos if isinstance(videos, str) else videos.path
