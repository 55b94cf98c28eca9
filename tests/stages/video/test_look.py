"""A first look in a child: the same answers as here, and what hangs, grows or dies costs one video."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from films import film

from vlpipe.pipeline.errors import RowFault, StepFailed
from vlpipe.stages.video.decode import Limits, probe
from vlpipe.stages.video.look import Looker, looker


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    film(folder / "a.mp4", 30)
    (folder / "text.mp4").write_text("not a video")
    return folder


def why(one: Looker, video: str, num_bytes: int | None = None) -> str:
    with pytest.raises(RowFault) as caught:
        one.look(video, num_bytes)
    return caught.value.why


def test_the_same_answers_as_in_this_process(root: Path) -> None:
    with looker(str(root)) as one:
        assert one.look("a.mp4", fps=2).info == probe(str(root), "a.mp4")
        assert why(one, "text.mp4") == "broken_video"
        assert why(one, "none.mp4") == "no_file"
        assert why(one, "a.mp4", num_bytes=1) == "video_changed"
        assert one._process is not None
        pid = one._process.pid
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max file size             0" in limits
    assert not Path(f"/proc/{pid}").exists()


def test_a_video_that_hangs_or_kills(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlpipe.stages.video.look.GRACE_S", 0.0)
    with looker(str(root), Limits(deadline_s=0.5)) as one:
        one.look("a.mp4")
        assert one._process is not None
        os.kill(one._process.pid, signal.SIGSTOP)  # as inside a decoder that never returns
        assert why(one, "a.mp4") == "deadline"
        one.look("a.mp4")
        assert one._process is not None
        os.kill(one._process.pid, signal.SIGKILL)
        one.look("a.mp4")  # once may be chance


def test_the_second_death_is_the_videos_doing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with looker(str(root)) as one:
        alive = one._alive

        def doomed() -> object:
            process = alive()
            process.kill()
            process.wait()
            return process

        monkeypatch.setattr(one, "_alive", doomed)
        with pytest.raises(
            RowFault, match=r"^killed_decoder: a.mp4: the process that decoded it died with -9$"
        ):
            one.look("a.mp4")


def test_a_video_that_takes_too_much_memory(root: Path) -> None:
    import numpy as np

    film(root / "large.mp4", 4, picture=lambda _: np.zeros((2160, 3840, 3), np.uint8))
    with looker(str(root), memory_mb=16) as one:
        assert why(one, "large.mp4") in ("decode_memory", "broken_video")  # FFmpeg does not always say which
        assert one.look("a.mp4").info.width == 80


def test_a_child_that_cannot_start_is_no_videos_fault(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with looker(str(root)) as one, pytest.raises(StepFailed, match="does not start"):
        one.look("a.mp4")
