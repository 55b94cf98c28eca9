"""Where the videos of rows lie. A row names its file below this root with size and sha256, so the root is in no key."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from vlpipe.pipeline.files import File

# A folder or an fsspec URL, which is not hashed; or {from: STEP, path: NAME}.
VideosRoot: TypeAlias = Annotated[str | File, Field(union_mode="left_to_right")]


def root_path(videos: VideosRoot) -> str:
    return videos if isinstance(videos, str) else videos.path
