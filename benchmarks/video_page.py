"""The figures of `video.py` as a page."""

from __future__ import annotations

import statistics
from typing import Any

from record import machine_line, table

TARGET = 1.1
OURS = "vlpipe"
BY_CLIP = "vlpipe, clip by clip"
CASES = {
    "one per second": "1 frame per second of the whole film",
    "clips": "random clips of 3.2 s, 10 frames per second",
}


def markdown(found: dict[str, Any]) -> str:
    load = ", ".join(f"{x:.2f}" for x in found["machine"]["load_average_after"])
    parts = [
        "# Decoding",
        f"Written by `python benchmarks/video.py --peer PYTHON --write`. {machine_line(found['machine'])} "
        f"{', '.join(sorted({one['package'] for one in found['measured']}))}. When it ended: {load}.",
        f"A film of {found['seconds']} s at 30 frames per second, 456 x 256, H.264 with B-frames; frames come out as "
        "224 x 224 RGB. One thread each; seconds of processor time, medians; the ways take turns.",
    ]
    for case, title in CASES.items():
        parts += [f"## {title[0].upper()}{title[1:]}", _table(found["measured"], case)]
    return "\n\n".join([*parts, _text(found["measured"])]) + "\n"


def _times(measured: list[dict[str, Any]], case: str, gop: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in measured:
        if one["case"] == case and one["gop"] == gop:
            found.setdefault(one["way"], []).append(one)
    return found


def _gops(measured: list[dict[str, Any]]) -> list[int]:
    return list(dict.fromkeys(one["gop"] for one in measured))


def _table(measured: list[dict[str, Any]], case: str) -> str:
    rows = []
    for gop in _gops(measured):
        times = _times(measured, case, gop)
        best = min(_median(ones) for way, ones in times.items() if way not in (OURS, BY_CLIP))
        for way, ones in times.items():
            seconds = sorted(one["cpu_s"] for one in ones)
            rows.append(
                [
                    f"GOP {gop}, {way}",
                    f"{_median(ones):.2f}",
                    " ".join(f"{s:.2f}" for s in seconds),
                    f"{statistics.median(one['frames'] / one['cpu_s'] for one in ones):.0f}",
                    f"{_median(ones) / best:.2f}",
                ]
            )
    return table(["", "s (median)", "all", "frames given per s", "times the best peer"], rows)


def _median(ones: list[dict[str, Any]]) -> float:
    return statistics.median(one["cpu_s"] for one in ones)


def _text(measured: list[dict[str, Any]]) -> str:
    said = []
    for case in CASES:
        for gop in _gops(measured):
            times = _times(measured, case, gop)
            peers = [way for way in times if way not in (OURS, BY_CLIP)]
            best = min(peers, key=lambda way: _median(times[way]))
            ratio = _median(times[OURS]) / _median(times[best])
            said.append(
                f"{case}, GOP {gop}: {ratio:.2f} of {best} ({'met' if ratio <= TARGET else 'not met'})"
            )
    return (
        f"Target: never more than {TARGET} times the best single other way. {'; '.join(said)}. vlpipe and PyAV, sequential, "
        "know all times beforehand and take them in order; the latter decodes up to the last one, whatever is asked for. "
        "All others take clip by clip as they come: PyAV enters at the key frame before it; decord and torchcodec are given "
        "all times of a clip at once, and scale as they decode."
    )
