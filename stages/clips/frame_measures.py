"""What a frame, and a frame and the next one, say cheaply: darkness, sharpness, motion, cuts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlpipe.stages.dedup.phash import grey, has_texture, hash_greys

Picture = npt.NDArray[np.uint8]  # (H, W, 3) RGB
HUES, SATS, VALUES = 12, 4, 4
DARK = 32  # grey levels: darker pixels are black, as FFmpeg's blackframe has it
BLACK_SHARE = 0.98  # of the pixels must be black for a black frame; blackframe's default


@dataclass(frozen=True, slots=True)
class FrameFacts:
    luma: npt.NDArray[np.float32]  # (H, W) grey levels
    colours: npt.NDArray[np.float64]  # (192,) histogram of hue, saturation and value; sums to 1
    dark: float  # share of black pixels
    sharpness: float  # variance of the Laplacian


def frame_facts(picture: Picture) -> FrameFacts:
    luma = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return FrameFacts(luma, hsv_histogram(picture[::2, ::2]), float((luma < DARK).mean()), sharpness(luma))


def sharpness(luma: npt.NDArray[np.float32]) -> float:
    """Variance of the Laplacian (four neighbours): low where nothing is in focus. Pech-Pacheco et al., ICPR 2000."""
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * luma[1:-1, 1:-1]).astype(np.float64).var())


def hsv_histogram(picture: Picture) -> npt.NDArray[np.float64]:
    """(192,): 12 hues x 4 saturations x 4 values, as shares of the pixels."""
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
    """0 to 1: the share of pixels whose colour the other frame has nowhere left (half the L1 distance of histograms)."""
    return float(np.abs(a.colours - b.colours).sum() / 2)


def motion(a: FrameFacts, b: FrameFacts) -> float:
    """Mean change of a pixel, in grey levels."""
    return float(np.abs(a.luma - b.luma).mean())


def frame_hash(picture: Picture) -> str | None:
    """pHash, 16 hexadecimal digits; None for a picture too flat to have one."""
    from PIL import Image

    greys = grey(Image.fromarray(picture))[None]
    return f"{hash_greys(greys)[0]:016x}" if has_texture(greys)[0] else None
