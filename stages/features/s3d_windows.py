"""Cuts a stream of frames into windows, which get one feature vector each; has the settings of published systems.

A window ends where its last real frame ends, so a feature has exact times even if its window is padded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vlpipe.stages.common.batches import BATCH_ROWS

Frames = npt.NDArray[np.uint8]
Tail = Literal["zeros", "repeat", "drop"]
Vector = Literal["pooled", "embedding"]
Normalisation = Literal["unit", "signed", "kinetics"]
Precision = Literal["fp32", "bf16", "fp16"]
DIMS = {"pooled": 1024, "embedding": 512}


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """How a video is cut into windows: at `fps`, window k contains `frames` frames, starting at frame k * `stride`.

    picked: number of frames given to the network, evenly spaced from first to last; default: all.
    tail: how to handle a final partial window that contains frames not covered by any earlier window. `zeros`: pad with
    black frames; `repeat`: pad with its last frame; `drop`: omit it, unless it is the only one, which is padded with black.
    side: in pixels; the shorter side is scaled to it, then a central square is cropped.
    vector: `pooled` (1024,) before the last layer, or `embedding` (512,), that of MIL-NCE's S3D-G. l2: divide by the norm.
    """

    fps: Annotated[float, Field(gt=0)]
    frames: Annotated[int, Field(ge=1)]
    stride: Annotated[int, Field(ge=1)]
    picked: Annotated[int, Field(ge=1)] | None = None
    tail: Tail = "zeros"
    side: Annotated[int, Field(ge=32)] = 224
    vector: Vector = "pooled"
    l2: bool = False

    @property
    def num_seen(self) -> int:
        """Number of frames per window given to the network."""
        return self.picked or self.frames

    @property
    def dim(self) -> int:
        return DIMS[self.vector]

    def num_windows(self, duration_s: float) -> int:
        """Returns the number of complete windows in so many seconds."""
        return max(0, int((duration_s * self.fps - self.frames) // self.stride) + 1)

    def seconds(self, first: int, num_real: int) -> tuple[float, float]:
        """Returns start and end of a window, in seconds after the first frame of the video or clip (frame number 0)."""
        return first / self.fps, (first + num_real) / self.fps


PRESETS = {
    # Sun et al. 2019, section 4.2 (Kinetics S3D); `tail` is our choice
    "videobert": Windows(fps=20, frames=30, stride=30, tail="drop"),
    # HERO_Video_Feature_Extractor/mil-nce; it spaces the 32 frames by the source's frame rate; here they span the window
    "hero": Windows(fps=30, frames=45, stride=45, picked=32, tail="repeat"),
    # fairseq MMPT, VideoCLIP
    "mmpt": Windows(fps=30, frames=30, stride=30, vector="embedding", l2=True),
    # ArrowLuo/VideoFeatureExtractor, UniVL
    "univl": Windows(fps=16, frames=16, stride=16),
    # COOT (Ging et al. 2020); `tail` and `vector` are our choice
    "coot": Windows(fps=16, frames=32, stride=16, side=256, vector="embedding"),
}


class Window(NamedTuple):
    """The frames of one window, for the network."""

    first: int  # number of its first frame; 0 is the first frame of the video or clip
    num_real: int  # number of frames without padding
    frames: Frames  # (num_seen, H, W, 3)


def batch_size_problems(batch_size: int) -> list[str]:
    """Returns the problems of a batch size, for `preflight`; empty if it is 1 or a positive multiple of BATCH_ROWS.

    A batch of 1 keeps a CPU core busy; results then cannot depend on the position in a batch.
    """
    if batch_size == 1 or (batch_size > 0 and batch_size % BATCH_ROWS == 0):
        return []
    return [
        f"batch_size must be 1 or a multiple of {BATCH_ROWS}, got {batch_size}: "
        "otherwise results depend on a window's position in its batch"
    ]


def av_problems() -> list[str]:
    """Returns an error text for `preflight` if PyAV is not installed; else empty."""
    found = importlib.util.find_spec("av") is not None
    return [] if found else ["reading video needs PyAV: pip install 'vlpipe[video]'"]


def cut(frames: Iterable[Frames], how: Windows) -> Iterator[Window]:
    """Cuts frames (H, W, 3) into windows, in order; at most one window's frames are in memory."""
    held: list[Frames] = []
    first = num_had = 0  # number of the first frame in `held`; number of the frame after the last window
    for number, picture in enumerate(frames):
        if number < first:  # between windows, if the stride is longer than a window
            continue
        held.append(picture)
        if len(held) == how.frames:
            yield _window(first, held, how)
            num_had = first + how.frames
            first += how.stride
            held = held[how.stride :]
    has_new = first + len(held) > num_had
    if held and has_new and (how.tail != "drop" or num_had == 0):
        yield _window(first, held, how)


def _window(first: int, held: list[Frames], how: Windows) -> Window:
    num_real = len(held)
    fill = held[-1] if how.tail == "repeat" else np.zeros_like(held[-1])
    full = held + [fill] * (how.frames - num_real)
    places = np.linspace(0, how.frames - 1, how.num_seen).astype(np.int64)
    return Window(first, num_real, np.stack([full[place] for place in places]))
