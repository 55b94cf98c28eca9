"""What comes out is what a player shows: the right frame, upright, with square pixels; and what is wrong has a name."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from films import HEIGHT, WIDTH, film, number_of

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.video.decode import (
    Exact,
    Limits,
    ShortSide,
    Size,
    Square,
    open_video,
    probe,
    sample_times,
)

AS_IT_IS = Exact(WIDTH, HEIGHT)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def numbers(path: Path, times_s: list[float], size: Size = AS_IT_IS) -> dict[int, int]:
    """Index of the time -> the number that its frame shows."""
    with open_video(str(path.parent), path.name) as video:
        return {index: number_of(picture) for index, picture in video.frames(times_s, size)}


def quarters(_: int = 0) -> np.ndarray:
    """64 x 32: red, green above blue, white."""
    picture = np.zeros((32, 64, 3), np.uint8)
    for (row, column), colour in zip([(0, 0), (0, 1), (1, 0), (1, 1)], COLOURS.values(), strict=True):
        picture[16 * row : 16 * row + 16, 32 * column : 32 * column + 32] = colour
    return picture


def corners(picture: np.ndarray) -> list[str]:
    """Colours of the four quarters: top left, top right, bottom left, bottom right."""
    height, width = picture.shape[:2]
    seen = [picture[y * height // 4, x * width // 4].astype(int) for y in (1, 3) for x in (1, 3)]
    return [min(COLOURS, key=lambda name: int(np.abs(one - COLOURS[name]).sum())) for one in seen]


def fault(root: Path, name: str, limits: Limits | None = None, num_bytes: int | None = None) -> str:
    with (
        pytest.raises(RowFault) as caught,
        open_video(str(root), name, limits or Limits(), num_bytes=num_bytes) as video,
    ):
        list(video.frames([0.0, 1.0], AS_IT_IS))
    return caught.value.why


def test_the_last_frame_that_began(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", times_s=[0, 0.1, 0.5, 0.6, 1.5])
    assert numbers(path, [0, 0.05, 0.1, 0.49, 0.5, 0.55, 1.49, 1.5]) == dict(
        enumerate([0, 0, 1, 1, 2, 2, 3, 4])
    )


def test_every_frame_at_its_own_rate(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):  # mkv rounds time stamps to milliseconds
        path = film(tmp_path / name, 60, fps=30, b_frames=2)
        got = numbers(path, list(sample_times(0, 2, 30)))
        assert got == {k: k for k in range(60)}


def test_times_past_the_end_are_left_out(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 30, fps=30)
    assert numbers(path, [0.99, 1.1, 5.0]) == {0: 29}
    with pytest.raises(
        RowFault, match=r"^no_frames_in_window: a.mp4: the video ends before 1.5 s, the first time to read$"
    ):
        numbers(path, [1.5, 2.0])
    assert numbers(path, []) == {}
    with pytest.raises(ValueError, match="finite and ascending"):
        numbers(path, [1.0, 0.0])


def test_before_the_first_frame_comes_the_first(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", times_s=[0.5, 0.6, 0.7])
    assert numbers(path, [0, 0.55, 0.6]) == {0: 0, 1: 0, 2: 1}


@pytest.mark.parametrize(
    ("rotation", "seen"),
    [
        (0, ["red", "green", "blue", "white"]),
        (90, ["green", "white", "red", "blue"]),  # counter-clockwise
        (180, ["white", "blue", "green", "red"]),
        (270, ["blue", "red", "white", "green"]),
    ],
)
def test_rotation_is_applied(tmp_path: Path, rotation: int, seen: list[str]) -> None:
    path = film(tmp_path / "a.mp4", 3, picture=quarters, rotation=rotation)
    with open_video(str(tmp_path), path.name) as video:
        turned = rotation in (90, 270)
        assert (video.info.width, video.info.height) == ((32, 64) if turned else (64, 32))
        pictures = [picture for _, picture in video.frames([0], ShortSide(32))]
        assert pictures[0].shape == ((64, 32, 3) if turned else (32, 64, 3))
        assert corners(pictures[0]) == seen
        wide = next(video.frames([0], Exact(48, 40)))[1]
        assert wide.shape == (40, 48, 3)
        assert corners(wide) == seen


def test_pixels_become_square(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 3, picture=quarters, sar=Fraction(2))
    with open_video(str(tmp_path), "a.mp4") as video:
        assert (video.info.width, video.info.height, video.info.sar) == (128, 32, 2.0)
        assert next(video.frames([0], ShortSide(16)))[1].shape == (16, 64, 3)


def test_a_square_is_the_middle(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 3, picture=lambda _: np.repeat(quarters(), 2, axis=1))  # 128 x 32
    with open_video(str(tmp_path), "a.mp4") as video:
        square = next(video.frames([0], Square(16)))[1]
    assert square.shape == (16, 16, 3)
    assert corners(square) == ["red", "green", "blue", "white"]


def test_windows_in_any_order_and_a_name_with_a_dash(tmp_path: Path) -> None:
    film(tmp_path / "-_a.mp4", 90, gop=12, b_frames=2)
    with open_video(str(tmp_path), "-_a.mp4") as video:
        for start in (2.0, 0.0, 1.0, 1.1):
            got = [number_of(p) for _, p in video.frames(sample_times(start, start + 0.2, 10), AS_IT_IS)]
            assert got == [round(30 * start), round(30 * start) + 3]


def test_an_fsspec_root(tmp_path: Path) -> None:
    import fsspec

    data = film(tmp_path / "a.mp4", 90, gop=12, b_frames=2).read_bytes()
    with fsspec.open("memory://films/sub/a.mp4", "wb") as file:
        file.write(data)
    with open_video("memory://films", "sub/a.mp4", num_bytes=len(data)) as video:
        assert [number_of(p) for _, p in video.frames([0.5, 2.5, 2.9], AS_IT_IS)] == [15, 75, 87]
        assert [number_of(p) for _, p in video.frames([0.1], AS_IT_IS)] == [3]
    for video_path, why in (("sub/b.mp4", "no_file"), ("../a.mp4", "bad_path")):
        with pytest.raises(RowFault, match=why), open_video("memory://films", video_path):
            pass


def test_a_lost_connection_is_no_fault_of_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFile

    data = film(tmp_path / "a.mp4", 300, gop=12).read_bytes()
    with fsspec.open("memory://films/lost.mp4", "wb") as file:
        file.write(data)
    read, reads_left = MemoryFile.read, 1000

    def lost(self: MemoryFile, *size: int) -> bytes:
        nonlocal reads_left
        reads_left -= 1
        if reads_left < 0:
            raise ConnectionResetError("by the peer")
        return read(self, *size)

    monkeypatch.setattr(MemoryFile, "read", lost)
    monkeypatch.setattr("vlpipe.stages.video.open_video.BUFFER_BYTES", 1024)
    with open_video("memory://films", "lost.mp4") as video:
        assert next(video.frames([0.5], AS_IT_IS))[0] == 0
        reads_left = 0
        with pytest.raises(ConnectionResetError, match="by the peer"):
            list(video.frames([9.5], AS_IT_IS))


def test_faults(tmp_path: Path) -> None:
    size = film(tmp_path / "a.mp4").stat().st_size
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:10,\nfile://{tmp_path}/a.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile {tmp_path}/a.mp4\n")
    for name in ("empty.mp4", "text.mp4", "list.m3u8", "list.ffconcat"):
        assert fault(tmp_path, name) == "broken_video"
    assert fault(tmp_path, "none.mp4") == "no_file"
    assert fault(tmp_path, "../a.mp4") == "bad_path"
    assert fault(tmp_path, "a.mp4", num_bytes=size + 1) == "video_changed"
    assert fault(tmp_path, "a.mp4", Limits(max_pixels=WIDTH * HEIGHT - 1)) == "too_many_pixels"
    assert fault(tmp_path, "a.mp4", Limits(deadline_s=0)) == "deadline"


def test_sound_without_pictures(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(RowFault, match=r"^no_video: a.mp4 has no video stream; it has audio$"):
        probe(str(tmp_path), "a.mp4")


def test_sample_times() -> None:
    assert sample_times(1, 2, 4).tolist() == [1, 1.25, 1.5, 1.75]
    assert len(sample_times(0, 0.3, 10)) == 3
    assert sample_times(2, 1, 4).tolist() == []
    with pytest.raises(ValueError, match="fps more than 0"):
        sample_times(0, 1, 0)
