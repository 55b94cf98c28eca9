"""Which frames of a video make one feature vector: the windows that each line of work uses, and the frames cut into them.

A window's end is where its last real frame ends, so a feature keeps its exact time even when its window was filled up.
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
    """Frames at `fps`; window k holds `frames` of them from frame k * `stride` on.

    picked: so many of them, evenly spaced from first to last, go through the network; left out: all.
    tail: what becomes of a last window that is not full but has frames no window had before. `zeros`: filled with black;
    `repeat`: with its last frame; `drop`: left out, unless it is the only one, which is filled with black.
    side: pixels; the shorter side is scaled to it, then the middle is cut out.
    vector: `pooled`, 1024 numbers before the last layer, or `embedding`, MIL-NCE's 512 behind it. l2: of length 1.
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
        """Frames that go through the network."""
        return self.picked or self.frames

    @property
    def dim(self) -> int:
        return DIMS[self.vector]

    def seconds(self, first: int, num_real: int) -> tuple[float, float]:
        """Start and end of the window whose first frame is number `first`, from the start of the span."""
        return first / self.fps, (first + num_real) / self.fps


PRESETS = {
    # Sun et al. 2019, section 4.2 (Kinetics S3D); what becomes of the tail is ours
    "videobert": Windows(fps=20, frames=30, stride=30, tail="drop"),
    # HERO_Video_Feature_Extractor/mil-nce; it spaces the 32 by the source's frame rate, here they span the window
    "hero": Windows(fps=30, frames=45, stride=45, picked=32, tail="repeat"),
    # fairseq MMPT, VideoCLIP
    "mmpt": Windows(fps=30, frames=30, stride=30, vector="embedding", l2=True),
    # ArrowLuo/VideoFeatureExtractor, UniVL
    "univl": Windows(fps=16, frames=16, stride=16),
    # COOT (Ging et al. 2020); the tail, and taking the embedding, are ours
    "coot": Windows(fps=16, frames=32, stride=16, side=256, vector="embedding"),
}


class Window(NamedTuple):
    first: int  # number of its first frame
    num_real: int
    frames: Frames  # (num_seen, H, W, 3)


def batch_size_problems(batch_size: int) -> list[str]:
    """For `preflight`. One window is work enough for a CPU core, and alone it has no neighbours that could move it."""
    if batch_size == 1 or (batch_size > 0 and batch_size % BATCH_ROWS == 0):
        return []
    return [f"batch_size must be 1 or a multiple of {BATCH_ROWS}, got {batch_size}: else place moves results"]


def av_problems() -> list[str]:
    """For `preflight`."""
    found = importlib.util.find_spec("av") is not None
    return [] if found else ["reading video needs PyAV: pip install 'vlpipe[video]'"]


def cut(frames: Iterable[Frames], how: Windows) -> Iterator[Window]:
    """Pictures (H, W, 3) in order -> windows in order; holds no more than one window's pictures."""
    held: list[Frames] = []
    first = num_had = 0  # number of the first picture held; how many pictures windows had so far
    for number, picture in enumerate(frames):
        if number < first:  # between windows, when the stride is longer than a window
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
