"""Videos are decoded in a process that can open nothing: the same frames, and a typed fault for whatever happens to it."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from films import film

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.images.sandbox import environment
from vlpipe.stages.video import decode, shut_in
from vlpipe.stages.video.decode import Exact, Limits, ShortSide, Size, Square, sample_times
from vlpipe.stages.video.shut_in import VideoChild


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("films")
    film(made / "a.mp4", 60)
    film(made / "b.mkv", 30, b_frames=2)
    film(made / "freeze.mkv", 3, times_s=[0, 0.04, 99 * 3600])
    return made


@pytest.fixture
def child() -> Iterator[VideoChild]:
    one = VideoChild(512, "it does not start")
    yield one
    one.close()


def test_a_size_per_time(folder: Path) -> None:
    times, sizes = [0.0, 0.1, 0.1, 0.9], [Square(32), Exact(40, 20), ShortSide(16), Exact(40, 20)]
    for opened in (decode.open_video, shut_in.open_video):
        with opened(str(folder), "a.mp4") as video:
            found = list(video.frames(times, sizes))
            assert [index for index, _ in found] == [0, 1, 2, 3]
            for index, picture in found:
                alone = next(video.frames([times[index]], sizes[index]))[1]
                assert picture.shape == alone.shape
                assert (picture == alone).all()
            with pytest.raises(ValueError, match=r"^wanted one size, or one per time; got 4 for 3 times$"):
                list(video.frames(times[:3], sizes))


@pytest.mark.parametrize("size", [Square(32), ShortSide(16), Exact(40, 20)])
@pytest.mark.parametrize("root", ["{}", "file://{}"])
@pytest.mark.parametrize("name", ["a.mp4", "b.mkv"])
def test_the_same_frames_as_in_this_process(folder: Path, name: str, root: str, size: Size) -> None:
    times = [0.0, 0.1, 0.1, 0.9, 5.0]
    with decode.open_video(str(folder), name) as here, shut_in.open_video(root.format(folder), name) as there:
        assert here.info == there.info
        for _ in range(2):  # from the start again
            expected, found = list(here.frames(times, size)), list(there.frames(times, size))
            assert [index for index, _ in found] == [index for index, _ in expected]
            assert all((a[1] == b[1]).all() for a, b in zip(expected, found, strict=True))
        next(there.frames(times, size))  # and the rest is not wanted
        assert len(list(there.frames([0.2], size))) == 1
        with pytest.raises(
            ValueError,
            match=r"^times_s, the times of the frames in seconds, must be finite and ascending, got",
        ):
            list(there.frames([1.0, 0.5], size))
        with pytest.raises(RowFault, match=r"^no_frames_in_window: "):
            list(there.frames([100.0], size))
        found[0][1][:] = 0  # a frame may be changed


def test_what_is_wrong_with_a_file(folder: Path) -> None:
    (folder / "text.mp4").write_text("no video")
    for name, num_bytes, why in (
        ("none.mp4", None, "no_file"),
        ("../x", None, "bad_path"),
        ("a.mp4", 7, "video_changed"),
        ("text.mp4", None, "broken_video"),
    ):
        with pytest.raises(RowFault) as fault, shut_in.open_video(str(folder), name, num_bytes=num_bytes):
            pass
        assert fault.value.why == why


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_it_has_no_files_no_sockets_and_no_secrets(
    folder: Path, child: VideoChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    assert "hidden" not in environment().values()
    with (folder / "a.mp4").open("rb") as file:
        child.open(file, "a.mp4", Limits())
        next(child.frames([0.0], Square(32)))
    process = Path("/proc") / str(child._child.start().pid)
    assert b"hidden" not in (process / "environ").read_bytes()
    assert sorted(os.listdir(process / "fd")) == ["0", "1", "2"]
    limits = (process / "limits").read_text()
    assert [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")] == [
        ["3", "3"]
    ]


@pytest.mark.slow
def test_a_child_that_dies_costs_one_video(folder: Path, child: VideoChild) -> None:
    with (folder / "a.mp4").open("rb") as file:
        child._child.start().kill()
        assert child.open(file, "a.mp4", Limits()).info.height == 32  # started again
        frames = child.frames([0.0, 0.5, 1.0], Square(32))
        next(frames)
        child._child.start().kill()
        with pytest.raises(
            RowFault, match=r"^killed_decoder: a.mp4: the process that decoded it died with exit status -9$"
        ):
            next(frames)
        child.open(file, "a.mp4", Limits())


@pytest.mark.slow
def test_a_child_that_hangs_is_ended(
    folder: Path, child: VideoChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shut_in, "GRACE_S", 0.1)
    with (folder / "a.mp4").open("rb") as file:
        child.open(file, "a.mp4", Limits())
        child._limits = Limits(deadline_s=0.3)
        child._child.start().send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(
            RowFault, match=r"^deadline: a.mp4: decoding took more than 0.3 s, and did not stop$"
        ):
            next(child.frames([0.0], Square(32)))
    assert time.monotonic() - began < 20


def test_videos_in_several_threads(folder: Path) -> None:
    found: list[int] = []

    def read() -> None:
        with shut_in.open_video(str(folder), "a.mp4") as video:
            found.append(len(list(video.frames([0.0, 1.0], Square(32)))))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [2, 2, 2]


def test_a_frame_shown_for_hours_ends_at_the_deadline(folder: Path) -> None:
    with decode.open_video(str(folder), "freeze.mkv", Limits(deadline_s=0.2)) as video:
        frames = video.frames(sample_times(0, 86_400, 30), Square(64))
        with pytest.raises(RowFault, match=r"^deadline: "):
            deque(frames, maxlen=0)


class Lost(io.BytesIO):
    """A file whose connection is lost after `left` reads."""

    left = 1

    def read(self, *size: int | None) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ConnectionResetError("by the peer")
        return super().read(*size)


def test_a_lost_connection_is_no_fault_of_the_video(folder: Path, child: VideoChild) -> None:
    content = (folder / "a.mp4").read_bytes() + bytes(2_000_000)
    with pytest.raises(ConnectionResetError, match="by the peer"):
        child.open(Lost(content), "a.mp4", Limits())
    assert (
        child.open(io.BytesIO(content), "a.mp4", Limits()).info.height == 32
    )  # the child knows nothing of it
