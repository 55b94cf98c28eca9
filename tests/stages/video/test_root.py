from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from vlpipe.pipeline.files import File
from vlpipe.stages.clips.frame_signals import FrameSignals
from vlpipe.stages.video.video_root import root_path


def videos_of(written: Any) -> Any:
    """As a workflow's parameters are read."""
    text = json.dumps({"videos": written})
    return TypeAdapter(FrameSignals).validate_json(text, strict=True).videos


def test_a_path_or_url_is_taken_as_it_is_and_an_artifact_is_a_file() -> None:
    for path in ("s3://bucket/howto", "videos", "/data/videos"):
        assert videos_of(path) == root_path(path) == path
    assert videos_of({"from": "world", "path": "videos"}) == File(step="world", path="videos")
    assert root_path(File(path="/run/world/artifacts/videos", step="world")) == "/run/world/artifacts/videos"
    with pytest.raises(ValidationError):
        videos_of(7)
