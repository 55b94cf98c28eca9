"""Cheap measures of a frame and of two consecutive frames: darkness, sharpness, text, motion, cuts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlpipe.stages.common.phash import grey, has_texture, hash_greys

Picture = npt.NDArray[np.uint8]  # (H, W, 3) RGB
HUES, SATS, VALUES = 12, 4, 4
DARK = 32  # grey level; darker pixels are black, as in FFmpeg's blackframe
STROKE = 48  # min grey-level difference of adjacent pixels at the edge of a letter
LINE = 16  # lines of text per shorter side; a window is one line high and four times as wide
STROKES = 0.2  # min fraction of edge pixels in a window with text
BLACK_SHARE = 0.98  # min fraction of black pixels in a black frame; blackframe's default


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """Measures of one frame (H, W, 3)."""

    luma: npt.NDArray[np.float32]  # (H, W) grey levels
    colours: npt.NDArray[np.float64]  # (192,) histogram of hue, saturation and value; sums to 1
    dark: float  # fraction of black pixels
    sharpness: float  # variance of the Laplacian
    text: float  # fraction of the image that looks like text


def frame_facts(picture: Picture) -> FrameFacts:
    luma = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return FrameFacts(
        luma, hsv_histogram(picture[::2, ::2]), float((luma < DARK).mean()), sharpness(luma), text_share(luma)
    )


def sharpness(luma: npt.NDArray[np.float32]) -> float:
    """Returns the variance of the 4-neighbour Laplacian; low if nothing is in focus. Pech-Pacheco et al., ICPR 2000."""
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * luma[1:-1, 1:-1]).astype(np.float64).var())


def text_share(luma: npt.NDArray[np.float32]) -> float:
    """Returns the fraction of a frame covered by burned-in titles and subtitles.

    The estimate is the fraction of windows, one text line high, with dense vertical edges. Foliage, fences and printed
    objects count too; large letters do not.
    """
    height = max(4, min(luma.shape) // LINE)
    width = 4 * height
    rows, columns = luma.shape[0] // height, (luma.shape[1] - 1) // width
    if not rows or not columns:
        return 0.0
    edges = np.abs(np.diff(luma, axis=1)) >= STROKE
    windows = edges[: rows * height, : columns * width].reshape(rows, height, columns, width)
    return float((windows.mean(axis=(1, 3)) >= STROKES).mean())


def hsv_histogram(picture: Picture) -> npt.NDArray[np.float64]:
    """Returns a histogram (192,) that sums to 1: 12 hues x 4 saturations x 4 values."""
    rgb = picture.reshape(-1, 3).astype(np.int32)
    high, low = rgb.max(1), rgb.min(1)
    chroma = high - low
    red, green, blue = rgb.T
    safe = np.maximum(chroma, 1)
    hue = np.select(
        [chroma == 0, high == red, high == green],
        [0, ((green - blue) / safe) % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    bins = (
        np.minimum((hue * HUES / 6).astype(np.int64), HUES - 1) * SATS
        + chroma * (SATS - 1) // np.maximum(high, 1)
    ) * VALUES + high * VALUES // 256
    return np.bincount(bins, minlength=HUES * SATS * VALUES) / len(rgb)


def colour_change(a: FrameFacts, b: FrameFacts) -> float:
    """Returns half the L1 distance of the two colour histograms, 0 to 1."""
    return float(np.abs(a.colours - b.colours).sum() / 2)


def motion(a: FrameFacts, b: FrameFacts) -> float:
    """Returns the mean absolute difference per pixel, in grey levels."""
    return float(np.abs(a.luma - b.luma).mean())


def frame_hash(picture: Picture) -> str | None:
    """Returns the pHash as 16 hexadecimal digits; None if the image has too little texture."""
    from PIL import Image

    greys = grey(Image.fromarray(picture))[None]
    return f"{hash_greys(greys)[0]:016x}" if has_texture(greys)[0] else None
