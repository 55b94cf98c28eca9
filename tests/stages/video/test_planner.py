"""However few packets are decoded, the frames are those of decoding everything: pixel for pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from films import HEIGHT, WIDTH, Kwargs, film, frame_times, number_of
from slow import slow_frames

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.video.decode import Exact, open_video, sample_times

FILMS: dict[str, Kwargs] = {
    "every frame a key": {"gop": 1},
    "gop 12": {"gop": 12},
    "gop 12, reordered": {"gop": 12, "b_frames": 3},
    "open gop": {"gop": 12, "b_frames": 3, "open_gop": True},
    "gop 250, reordered": {"gop": 250, "b_frames": 3, "num_frames": 300},
    "25 fps, gop 30": {"gop": 30, "b_frames": 2, "fps": 25},
    "29.97 fps": {"fps": 30000 / 1001, "b_frames": 2},
    "vp9": {"codec": "libvpx-vp9", "gop": 24},
    "mpeg4": {"codec": "mpeg4", "gop": 12, "b_frames": 2},
    "mpeg2": {"codec": "mpeg2video", "gop": 12, "b_frames": 2},
}
ENDINGS = {
    "gop 12, reordered": (".mp4", ".mkv", ".mov", ".ts", ".flv", ".avi"),
    "vp9": (".webm",),
    "mpeg4": (".mp4", ".avi"),
    "mpeg2": (".mpg", ".ts"),
}


def cases() -> list[tuple[str, str]]:
    return [(name, end) for name in FILMS for end in ENDINGS.get(name, (".mp4", ".mkv", ".ts"))]


def check(path: Path, times_s: list[float], size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """One call for all times, and a call for each of some times on one open video, in any order."""
    expected = slow_frames(path, times_s, *size)
    with open_video(str(path.parent), path.name) as video:
        same(dict(video.frames(times_s, Exact(*size))), expected)
        for index in np.random.default_rng(0).permutation(len(times_s))[:10]:
            if index in expected:
                same(dict(video.frames([times_s[index]], Exact(*size))), {0: expected[index]})
            else:
                with pytest.raises(RowFault, match="no_frames_in_window"):
                    list(video.frames([times_s[index]], Exact(*size)))


def same(found: dict[int, np.ndarray], expected: dict[int, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert [index for index, picture in found.items() if (picture != expected[index]).any()] == []


def many_times(end_s: float) -> list[list[float]]:
    """Every frame; one per second; few and many random ones, some past the end."""
    rng = np.random.default_rng(1)
    regular = [sample_times(0, end_s, 30).tolist(), sample_times(0.2, end_s, 1).tolist()]
    return regular + [sorted(rng.uniform(0, end_s * 1.1, num).tolist()) for num in (8, 40)]


@pytest.mark.parametrize(("name", "end"), cases())
def test_the_same_frames_as_decoding_everything(tmp_path: Path, name: str, end: str) -> None:
    path = film(tmp_path / f"a{end}", **{"num_frames": 100, **FILMS[name]})
    for times in many_times(3.4):
        check(path, times)


def uneven(num: int = 100) -> list[float]:
    """Gaps of 10 ms to 0.4 s."""
    gaps = np.random.default_rng(0).choice([0.01, 0.033, 0.1, 0.4], num)
    return [0.0, *np.cumsum(gaps)[:-1].tolist()]


@pytest.mark.parametrize("end", [".mp4", ".mkv"])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_uneven_frames(tmp_path: Path, end: str, b_frames: int) -> None:
    path = film(tmp_path / f"a{end}", times_s=uneven(), gop=24, b_frames=b_frames)
    for times in many_times(uneven()[-1]):
        check(path, times)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_an_edit_list_cuts_off_the_first_frames(tmp_path: Path, b_frames: int) -> None:
    times = [(k - 20) / 30 for k in range(100)]
    path = film(
        tmp_path / "a.mp4",
        times_s=times,
        gop=12,
        b_frames=b_frames,
        options={"avoid_negative_ts": "disabled"},
    )
    assert frame_times(path)[0] >= 0
    with open_video(str(tmp_path), "a.mp4") as video:
        shown = [number_of(p) for _, p in video.frames(sample_times(0, 2, 30), Exact(WIDTH, HEIGHT))]
    assert shown == list(range(20, 80))
    for times in many_times(2.7):
        check(path, times)


@pytest.mark.parametrize("end", [".mp4", ".mkv"])
def test_a_file_that_is_cut_off(tmp_path: Path, end: str) -> None:
    path = film(
        tmp_path / f"a{end}",
        300,
        gop=12,
        b_frames=2,
        options={"movflags": "faststart"} if end == ".mp4" else {},
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    for times in many_times(10):
        check(path, times)


def test_a_live_recording_without_index_and_duration(tmp_path: Path) -> None:
    path = film(tmp_path / "a.webm", codec="libvpx-vp9", num_frames=100, gop=24, options={"live": "1"})
    with open_video(str(tmp_path), "a.webm") as video:
        assert video.info.duration_s is None
    for times in many_times(3.4):
        check(path, times)


def test_a_fragmented_file(tmp_path: Path) -> None:
    """Its index grows as it is read."""
    path = film(tmp_path / "a.mp4", 300, gop=12, b_frames=2, options={"movflags": "frag_keyframe+empty_moov"})
    for times in many_times(10):
        check(path, times)


@pytest.mark.parametrize("end", [".mp4", ".mkv"])
def test_no_more_is_decoded_than_needed(tmp_path: Path, end: str) -> None:
    """At key frames: the key frame alone; in between: from the key frame on, and what is skipped need not be counted."""
    path = film(tmp_path / f"a{end}", 300, gop=30, b_frames=2)
    assert count_decoded(path, sample_times(0, 10, 1)) <= 10 + EXTRA
    assert count_decoded(path, [0.5, 4.5, 9.5]) <= 3 * 16 + EXTRA
    assert count_decoded(path, sample_times(0, 10, 30)) <= 300 + EXTRA // 2
    assert count_decoded(path, [9.99]) <= 30 + EXTRA


EXTRA = (
    8  # the decoder holds frames back: four packets until the first one comes out, and the last one of a call
)


def count_decoded(path: Path, times_s: Sequence[float]) -> int:
    """Packets that went into the decoder."""
    with open_video(str(path.parent), path.name) as video:
        walk, num = video._walk, EXTRA // 2
        decode = walk._decode

        def counted(packet: Any) -> None:
            nonlocal num
            num += packet is not None
            decode(packet)

        walk._decode = counted  # type: ignore[method-assign]
        assert len(list(video.frames(times_s, Exact(8, 8)))) == len(times_s)
    return num


def test_a_key_frame_in_the_middle_that_does_not_decode(tmp_path: Path) -> None:
    """The frames before it stay on show; nothing hangs, nothing is made up."""
    path = film(tmp_path / "a.mp4", 60, gop=12)
    with av.open(str(path)) as opened:
        packet = [p for p in opened.demux(video=0) if p.is_keyframe][2]
        where, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[where + 4 : where + size] = bytes(size - 4)
    path.write_bytes(bytes(data))
    with open_video(str(tmp_path), "a.mp4") as video:
        shown = {k: number_of(p) for k, p in video.frames([0.5, 0.81, 1.3], Exact(WIDTH, HEIGHT))}
    assert shown == {0: 15, 1: 23, 2: 39}
