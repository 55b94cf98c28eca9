"""Writes films and subtitles in formats that are common on the web; the same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vlpipe.stages.demo.film import FPS
from vlpipe.stages.demo.scenes import SIZE_PX
from vlpipe.stages.demo.speech import Utterance, Word
from vlpipe.stages.video.open_video import need_av

if TYPE_CHECKING:
    from av.video.stream import VideoStream


@dataclass(frozen=True, slots=True)
class Coding:
    """Container and codec of a film; the frames do not depend on it."""

    ending: str
    codec: str
    gop: int  # max number of frames from one key frame to the next
    b_frames: int = 0
    rotation: int = 0  # degrees by which a player rotates the stored frames, counter-clockwise


CODINGS = (
    Coding(".mp4", "libx264", 12),
    Coding(".mp4", "libx264", 250, b_frames=2),
    Coding(".mkv", "libx264", 48, b_frames=2),
    Coding(".webm", "libvpx-vp9", 30),
    Coding(".mp4", "libx264", 30, rotation=90),
)
OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b": "0"},
}


LINE_CHARS = 32  # of a rolling caption; about as long as YouTube's
PAUSE_MS = 1500  # a longer pause ends a line
SETTLE_MS = 10  # how long YouTube shows a line alone before the next one appears
HEADER = (  # of ASS, FFmpeg's internal subtitle format
    b"[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\nStyle: Default,Arial,16\n\n"
    b"[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)


def write_film(
    path: Path, frames: Iterable[npt.NDArray[np.uint8]], coding: Coding, text: Sequence[Utterance] = ()
) -> None:
    """Writes a film. frames: (SIZE_PX, SIZE_PX, 3) at FPS. text: utterances of an embedded text track."""
    av = need_av()
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as out:
        stream = out.add_stream(coding.codec, rate=FPS)
        _set_up(stream, coding)
        if text:
            _add_text(out, text)
        for number, pixels in enumerate(frames):
            turned = np.ascontiguousarray(np.rot90(pixels, -coding.rotation // 90))
            frame = av.VideoFrame.from_ndarray(turned, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _set_up(stream: VideoStream, coding: Coding) -> None:
    stream.width = stream.height = SIZE_PX
    stream.pix_fmt = "yuv420p"
    stream.gop_size, stream.max_b_frames = coding.gop, coding.b_frames
    stream.codec_context.thread_count = 1  # the bytes depend on the number of threads
    stream.options = {**OPTIONS[coding.codec], "flags": "+bitexact"}
    if coding.rotation:
        stream.set_display_rotation(coding.rotation)


def _add_text(out: Any, text: Sequence[Utterance]) -> None:
    """Adds an English MP4 text track. All streams must be added before the first packet."""
    from av.subtitles.subtitle import SubtitleSet

    track = out.add_stream("mov_text")
    track.codec_context.subtitle_header = HEADER
    track.time_base = track.codec_context.time_base = Fraction(1, 1000)
    track.metadata["language"] = "eng"
    for number, one in enumerate(text):
        line = f"{number},0,Default,,0,0,0,,{one.text}".encode()
        length_ms = one.end_ms - one.start_ms
        packet = track.codec_context.encode_subtitle(
            SubtitleSet.create(line, 0, length_ms, one.start_ms * 1000)
        )
        packet.stream, packet.time_base = track, Fraction(1, 1000)
        packet.pts = packet.dts = one.start_ms
        packet.duration = length_ms
        out.mux(packet)


def rolling_vtt(utterances: Sequence[Utterance]) -> str:
    """Returns WebVTT text with rolling captions, as in YouTube's ASR tracks.

    A line is part of up to three consecutive cues, with word times in the first.
    """
    lines = _lines([word for one in utterances for word in one.words])
    cues = ["WEBVTT\nKind: captions\nLanguage: en\n"]
    above = " "
    for index, line in enumerate(lines):
        start_ms, end_ms = line[0].start_ms, line[-1].end_ms
        if index + 1 < len(lines):  # a line is shown until the next one starts, however long that takes
            end_ms = lines[index + 1][0].start_ms - SETTLE_MS
        plain = " ".join(word.text for word in line)
        timed = line[0].text + "".join(f"<{clock(w.start_ms)}><c> {w.text}</c>" for w in line[1:])
        cues.append(_rolled(start_ms, end_ms, above, timed))
        cues.append(_rolled(end_ms, end_ms + SETTLE_MS, plain, " "))
        above = plain
    return "\n".join(cues)


def _rolled(start_ms: int, end_ms: int, upper: str, lower: str) -> str:
    return f"{clock(start_ms)} --> {clock(end_ms)} align:start position:0%\n{upper}\n{lower}\n"


def _lines(words: Sequence[Word]) -> list[list[Word]]:
    """Breaks words into lines, ignoring sentences."""
    lines: list[list[Word]] = []
    for word in words:
        line = lines[-1] if lines else []
        full = sum(len(one.text) + 1 for one in line) + len(word.text) > LINE_CHARS
        if not line or full or word.start_ms - line[-1].end_ms > PAUSE_MS:
            lines.append([])
        lines[-1].append(word)
    return lines


def overlapping_srt(utterances: Sequence[Utterance], rng: np.random.Generator) -> str:
    """Returns SRT text as in manual tracks: one sentence per cue, shown up to 2.5 s longer, so that some cues overlap."""
    cues = []
    for number, one in enumerate(utterances, start=1):
        end_ms = one.end_ms + int(rng.integers(0, 2500))
        times = f"{clock(one.start_ms)} --> {clock(end_ms)}".replace(".", ",")
        cues.append(f"{number}\n{times}\n{one.text.capitalize()}.\n")
    return "\n".join(cues)


def clock(ms: int) -> str:
    """Returns milliseconds as HH:MM:SS.mmm: 12345 -> 00:00:12.345."""
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{ms:03d}"
