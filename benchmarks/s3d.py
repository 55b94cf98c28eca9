"""What S3D features cost on one core: video-seconds per core-second of the whole stage, and where the time goes.

    python benchmarks/s3d.py             # about four minutes on one core; VLPIPE_DATA names the real data
    python benchmarks/s3d.py --write     # and puts the page into s3d.md beside this file
    python benchmarks/s3d.py --tiny      # the same path in half a minute, its figures mean nothing

Weights are random: the time does not depend on them. Real clips (640 x 360 H.264, VLPIPE_DATA/video_clips) are left out when
they are not there. Decoding alone is every frame of the file; scaling is what `Video.frames` takes beyond that; the network
is what the stage takes beyond both. CPU seconds of the process, not wall seconds: others may be at work.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import torch
from record import machine, machine_line, table

from vlpipe.models.video.s3d import S3d
from vlpipe.models.video.s3dg import S3dG
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.features.s3d import S3dFeatures
from vlpipe.stages.features.s3d_windows import PRESETS, Windows
from vlpipe.stages.video.decode import Square, open_video, sample_times

HERE = Path(__file__).parent
SECONDS, TINY_SECONDS = 24.0, 2.0  # of video, about, for each line
CASES = (
    ("univl", "fp32"),
    ("univl", "bf16"),
    ("mmpt", "bf16"),
    ("hero", "bf16"),
    ("coot", "bf16"),
    ("videobert", "fp32"),
    ("videobert", "bf16"),
)


@dataclass(frozen=True)
class Films:
    name: str
    root: Path
    files: tuple[str, ...]
    seconds: float


def real(seconds: float) -> Films | None:
    """Clips by name until there are so many seconds."""
    root = Path(os.environ.get("VLPIPE_DATA", HERE.parent.parent / "shared" / "data")) / "video_clips/clips"
    files, total = [], 0.0
    for path in sorted(root.glob("*.mp4")):
        if total < seconds:
            files.append(path.name)
            total += length_s(path)
    return Films("real clips, 640 x 360", root, tuple(files), total) if files else None


def made(folder: Path, seconds: float) -> Films:
    """Noise that drifts, 456 x 256 at 30 fps with a key frame every 250, as HowTo100M's copies at 256 px are."""
    draw = np.random.default_rng(0)
    texture = np.kron(draw.integers(0, 255, (40, 60, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    with av.open(str(folder / "made.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 456, 256, "yuv420p", 250
        stream.options = {"preset": "veryfast", "crf": "23", "sc_threshold": "0"}
        for k in range(round(30 * seconds)):
            picture = np.ascontiguousarray(np.roll(texture, -2 * k, axis=1)[:256, :456])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return Films("made, 456 x 256, GOP 250", folder, ("made.mp4",), seconds)


def length_s(path: Path) -> float:
    with av.open(str(path)) as opened:
        return (opened.duration or 0) / 1e6


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def decode_all(films: Films) -> None:
    for name in films.files:
        with av.open(str(films.root / name)) as opened:
            stream = opened.streams.best("video")
            stream.codec_context.thread_count = 1
            for _ in opened.decode(stream):
                pass


def read_frames(films: Films, how: Windows) -> None:
    for name in films.files:
        with open_video(str(films.root), name) as video:
            times = sample_times(0, length_s(films.root / name), how.fps)
            for _ in video.frames(list(times), Square(how.side)):
                pass


def features(films: Films, weights: Weights, preset: str, precision: str) -> int:
    """Number of windows."""
    sizes = [os.path.getsize(films.root / name) for name in films.files]
    rows = pa.table({"id": list(films.files), "video": list(films.files), "num_bytes": sizes})
    stage = S3dFeatures(videos=str(films.root), weights=weights, windows=preset, precision=precision)
    return sum(len(row) for row in run_map(stage, rows).table["s3d"])


def measure(films: Films, nets: dict[str, Weights], cases: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    decode_s = cpu_s(lambda: decode_all(films))
    found = []
    for preset, precision in cases:
        how, counted = PRESETS[preset], []
        weights = nets["s3d" if preset == "videobert" else "s3dg"]
        frames_s = cpu_s(lambda how=how: read_frames(films, how))
        whole_s = cpu_s(
            lambda w=weights, p=preset, d=precision, c=counted: c.append(features(films, w, p, d))
        )
        found.append(
            {
                "films": films.name,
                "seconds": films.seconds,
                "preset": preset,
                "precision": precision,
                "num_windows": counted[0],
                "decode_s": decode_s,
                "frames_s": frames_s,
                "whole_s": whole_s,
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def markdown(found: dict[str, Any]) -> str:
    rows = []
    for one in found["lines"]:
        whole, decode = one["whole_s"], min(one["decode_s"], one["frames_s"])
        shares = (decode, one["frames_s"] - decode, whole - one["frames_s"])
        rows.append(
            [
                f"{one['films']}: {one['preset']}, {one['precision']}",
                one["num_windows"],
                f"{one['seconds'] / whole:.2f}",
                *(f"{100 * share / whole:.0f} %" for share in shares),
                f"{(whole - one['frames_s']) / one['num_windows']:.2f}",
            ]
        )
    header = [
        "",
        "windows",
        "video s per core s",
        "decode",
        "scale",
        "network and rest",
        "of it s per window",
    ]
    parts = [
        "# What S3D features cost",
        f"Written by `python benchmarks/s3d.py --write`. {machine_line(found['machine'])}",
        "**A tiny trial: the figures mean nothing.**" if found["tiny"] else "",
        "The whole stage, from files to feature columns, on one core: torch with one thread, one decoder thread, "
        f"batches of one window. About {found['seconds']:.0f} s of video per line. Random weights (Kinetics S3D for "
        "videobert, MIL-NCE's S3D-G else); loading them counts. CPU seconds of the process. `decode`: every frame of the "
        "files, nothing else; `scale`: what reading the wanted frames at their size takes beyond that.",
        table(header, rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seconds = TINY_SECONDS if args.tiny else SECONDS
    found: dict[str, Any] = {"machine": machine(), "tiny": args.tiny, "seconds": seconds, "lines": []}
    with tempfile.TemporaryDirectory() as folder:
        nets = {}
        for name, net in (("s3d", S3d()), ("s3dg", S3dG(num_words=0))):
            torch.save(net.state_dict(), f"{folder}/{name}.pth")
            nets[name] = Weights(path=f"{folder}/{name}.pth")
        cases = CASES[:2] if args.tiny else CASES
        clips = real(seconds)
        if clips:
            found["lines"] += measure(clips, nets, cases)
        found["lines"] += measure(made(Path(folder), seconds), nets, cases[:2])
    page = markdown(found)
    print(page)
    if args.write:
        (HERE / "s3d.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
