"""Decodes image bytes to RGB: checks the header first, then converts each kind of image by one rule.

Rules: EXIF orientation is applied; alpha is composited on white; 16 bits are scaled to 8, not clipped; CMYK is
converted with its ICC profile if it has one; of an animation the first frame is used. Float and 32-bit images are
rejected: they do not define which value is white. JPEGs are decoded by simplejpeg, which gives the same pixels as
Pillow in four fifths of the time and reports damage; Pillow decodes the other formats, and reads all headers but those of
plain JPEGs that are only verified.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.formats import jpeg
from vlpipe.stages.formats.opening import error_text, has_many_scans, opened
from vlpipe.stages.formats.signatures import ends_early
from vlpipe.stages.formats.transparency import alpha_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

MAX_PIXELS = 50_000_000  # 200 MB for one decoded copy
COPIES = 3  # of a picture at once, at most: the decoder's, one that is upright, one on white
MAX_FRAMES = 1000
MAX_INVISIBLE = 2  # of 255: alpha up to this is invisible
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, as in BLIP
STD = (0.26862954, 0.26130258, 0.27577711)
ORIENTATION = 0x0112  # EXIF tag
MIRRORED_ACROSS = (2, 3, 6, 7)  # EXIF orientations of which the left was stored last
MIRRORED_DOWN = (3, 4, 7, 8)  # of which the top was stored last
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
SCALES = (8, 4, 2, 1)  # a JPEG is decoded at 1/8, 1/4, 1/2 or full size

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Damaged = Literal["reject", "keep"]  # how to handle a JPEG of which pixels are missing or wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """The header of an image. width, height: in pixels, after EXIF orientation is applied."""

    format: str  # as Pillow names it: JPEG, PNG, ...
    width: int
    height: int
    num_frames: int


def probe(data: bytes, *, max_pixels: int = MAX_PIXELS, max_frames: int = MAX_FRAMES) -> Probe:
    """Returns the Probe of an image, reading only its header.

    Raises RowFault: empty, not_an_image, unsupported_format, truncated, broken, too_many_pixels, too_many_frames,
    too_many_scans.
    """
    with opened(data, max_pixels) as image:
        return _probed(image, max_frames)


def verify(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    max_frames: int = MAX_FRAMES,
    damaged: Damaged = "reject",
) -> Probe:
    """Returns the Probe of an image after decoding its first frame. Raises RowFault as `probe`, and unsupported_pixels,
    transparent, damaged.

    A JPEG is read whole, but decoded at 1/8 scale: 0.7 ms instead of 1.8 ms at 640 x 480. damaged: `keep` accepts JPEGs
    with pixels missing or wrong, as long as the decoder gets to the end.
    """
    return verify_decode(data, lambda _: None, max_pixels=max_pixels, max_frames=max_frames, damaged=damaged)[
        0
    ]


def verify_decode(
    data: bytes,
    wanted: Callable[[Probe], tuple[int, int] | None],
    *,
    max_pixels: int = MAX_PIXELS,
    max_frames: int = MAX_FRAMES,
    damaged: Damaged = "reject",
) -> tuple[Probe, Image.Image | None]:
    """Returns (Probe, RGB image or None): the results of `verify` and `decode`, in one pass.

    wanted: maps the Probe to the min (width, height) of the decoded image, or to None if no image is needed; called up to
    twice.
    Raises RowFault as `verify`. What it accepts, `decode` decodes.
    """
    plain = _plain_jpeg(data, max_pixels)
    if plain is not None and wanted(plain) is None and jpeg.warning(data, plain.width, plain.height) is None:
        return plain, None
    with opened(data, max_pixels) as image:
        found = _probed(image, max_frames)
        at_least = wanted(found)
        pixels = _load(image, data, at_least, shown=at_least is not None, damaged=damaged)
        _need_standard(image)
        need_opaque(image, data)
        if image.format == "PNG":  # its orientation may be stored after the pixels
            width, height = _shown_size(image)
            found = replace(found, width=width, height=height)
            at_least = wanted(found)
        return found, None if at_least is None else _upright(image, pixels, data)


def need_opaque(image: Image.Image, data: bytes) -> None:
    """Raises RowFault (transparent) if the max alpha of a decoded image is at most MAX_INVISIBLE. data: its file."""
    alpha = alpha_of(image, data)
    if alpha is None:
        return
    highest = alpha.getextrema()[1]
    if isinstance(highest, (int, float)) and highest <= MAX_INVISIBLE:
        raise RowFault(
            "transparent", f"the image is transparent: the alpha of every pixel is at most {highest:g} of 255"
        )


def decode(
    data: bytes,
    *,
    max_pixels: int | None = None,
    at_least: tuple[int, int] | None = None,
    admit: Callable[[int], object] = int,
) -> Image.Image:
    """Returns the first frame as upright RGB. Raises RowFault with the codes of `verify` but `transparent` and `damaged`.

    max_pixels: None (no limit) for stored images, which the step that stored them has checked by its own limit.
    at_least: min (width, height) of the upright image; a JPEG may be decoded at scale 1/2, 1/4 or 1/8 if the result is no
    smaller than that, which is several times faster. admit: called with the bytes of all decoded copies before it is
    decoded; it may wait.
    """
    with opened(data, max_pixels) as image:
        admit(COPIES * 4 * image.width * image.height)
        return _upright(image, _load(image, data, at_least), data)


def decode_part(
    data: bytes, part: Callable[[int, int], Box], size: int, *, keep_whole: int = 0
) -> tuple[Image.Image, Image.Image | None]:
    """Returns (a part of the first frame, resized to (size, size); the whole frame, or None), upright and in RGB.

    part: maps (width, height) to the box to cut out, in pixels. A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4
    and 1/8 that leaves the part no smaller than `size`. The whole frame is returned if it has at most `keep_whole` pixels.
    Raises RowFault as `decode`.
    """
    with opened(data, None) as image:
        width, height = _shown_size(image)
        if width * height <= keep_whole or image.format not in ("JPEG", "MPO"):
            whole = _upright(image, _load(image, data, None), data)
            is_small = whole.width * whole.height <= keep_whole
            return resized_part(whole, part(*whole.size), size), whole if is_small else None
        box = part(width, height)
        least = math.ceil(width * size / (box[2] - box[0])), math.ceil(height * size / (box[3] - box[1]))
        scale, turn = _scale(image, least), _orientation(image)
        found = _upright(image, _load(image, data, least), data)
    if scale == 1:
        return resized_part(found, box, size), None
    # the last column and row of the stored picture may be parts of a pixel; where it is mirrored they come first
    left = found.width - width / scale if turn in MIRRORED_ACROSS else 0
    top = found.height - height / scale if turn in MIRRORED_DOWN else 0
    edges = (left + box[0] / scale, top + box[1] / scale, left + box[2] / scale, top + box[3] / scale)
    return resized_part(found, edges, size), None


def resized_part(image: Image.Image, box: Box, size: int) -> Image.Image:
    """Returns the part in `box` (left, top, right, bottom), resized to (size, size) with a bicubic filter."""
    from PIL import Image

    if box == (0, 0, *image.size):
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if all(isinstance(edge, int) for edge in box):
        return image.crop(cast(tuple[int, int, int, int], box)).resize((size, size), Image.Resampling.BICUBIC)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def to_pixels(image: Image.Image, size: int) -> npt.NDArray[np.float32]:
    """Returns an RGB image as (3, size, size) float32, resized (bicubic, no crop), with CLIP's mean and deviation."""
    import numpy as np

    mean, std = (np.array(v, np.float32) for v in (MEAN, STD))
    values = (square(image, size).astype(np.float32) / np.float32(255) - mean) / std  # (H, W, 3)
    return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)


def square(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Returns an RGB image as (size, size, 3) uint8, resized (bicubic, no crop)."""
    import numpy as np
    from PIL import Image

    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def load_pixels(
    images: Sequence[bytes], size: int, *, max_pixels: int | None = None
) -> npt.NDArray[np.float32]:
    """Returns B encoded images as (B, 3, size, size) float32, by `decode` and `to_pixels`. Raises RowFault as `decode`."""
    import numpy as np

    out = np.empty((len(images), 3, size, size), np.float32)
    for row, data in enumerate(images):
        out[row] = to_pixels(decode(data, max_pixels=max_pixels), size)
    return out


def _probed(image: Image.Image, max_frames: int) -> Probe:
    try:
        num_frames = int(getattr(image, "n_frames", 1))
    except MemoryError:
        raise
    except Exception as error:  # a broken chain of frames
        raise RowFault("broken", error_text(error)) from error
    if num_frames > max_frames:
        raise RowFault("too_many_frames", f"the image has {num_frames} frames, the limit is {max_frames}")
    width, height = _shown_size(image)
    return Probe(format=image.format or "", width=width, height=height, num_frames=num_frames)


def _plain_jpeg(data: bytes, max_pixels: int) -> Probe | None:
    """Returns the Probe of a JPEG with a plain header, read without Pillow; None for any other file, or one to reject."""
    width, height = jpeg.plain_size(data) or (0, 0)
    if not 0 < width * height <= max_pixels or has_many_scans(data):
        return None
    return Probe(format="JPEG", width=width, height=height, num_frames=1)


def _load(
    image: Image.Image,
    data: bytes,
    at_least: tuple[int, int] | None,
    *,
    shown: bool = True,
    damaged: Damaged = "keep",
) -> Image.Image:
    """Decodes an opened image and returns it, or an image of its pixels, which may be smaller (see `decode`).

    shown: whether the pixels are wanted; if not, `image` is returned, and a JPEG is decoded at 1/8 and discarded.
    Raises RowFault: truncated, broken, damaged.
    """
    scale = _scale(image, at_least) if shown else SCALES[0]
    is_jpeg = image.format in ("JPEG", "MPO")
    is_plain = image.mode in ("L", "RGB")  # CMYK needs its profile
    if not is_jpeg or not (is_plain or damaged == "reject"):
        _load_by_pillow(image, data, scale)
        return image
    try:
        colours: Literal["rgb", "gray"] = "rgb" if shown and image.mode == "RGB" else "gray"
        pixels = jpeg.decode(data, colours, *image.size, scale)
    except jpeg.Warned:
        _load_by_pillow(image, data, scale)
        warning = jpeg.damage(data) if damaged == "reject" else None
        if warning is not None:
            raise RowFault("damaged", warning) from None
        return image
    if shown and is_plain:
        return _as_image(pixels)
    if shown:
        _load_by_pillow(image, data, scale)
    return image


def _as_image(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """(H, W, 1) or (H, W, 3) -> an image of mode L or RGB."""
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _scale(image: Image.Image, at_least: tuple[int, int] | None) -> int:
    if at_least is None:
        return 1
    width, height = at_least[::-1] if _orientation(image) in TURNED else at_least
    times = min(image.width // max(width, 1), image.height // max(height, 1))
    return next((scale for scale in SCALES if times >= scale), 1)


def _upright(image: Image.Image, pixels: Image.Image, data: bytes) -> Image.Image:
    """Returns `pixels` of the opened `image` as upright RGB. data: the file."""
    step = _transpose_step(image)
    if pixels is image:
        rgb = _to_rgb(image, data)
    else:
        rgb = pixels.convert("RGB") if pixels.mode != "RGB" else pixels
        rgb.info = {key: image.info[key] for key in ("icc_profile",) if key in image.info}
    return rgb if step is None else rgb.transpose(step)


def _load_by_pillow(image: Image.Image, data: bytes, scale: int = 1) -> None:
    if scale > 1:  # has no effect on formats other than JPEG
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders of hostile data raise anything
        is_cut = _ends_early(error) or (image.format != "JPEG" and ends_early(data))
        raise RowFault("truncated" if is_cut else "broken", error_text(error)) from error


def _ends_early(error: Exception) -> bool:
    message = str(error).lower()
    return isinstance(error, EOFError) or "truncated" in message or "not enough image data" in message


def _shown_size(image: Image.Image) -> tuple[int, int]:
    turned = image.format != "TIFF" and _orientation(image) in TURNED  # Pillow rotates TIFF itself
    return (image.height, image.width) if turned else image.size


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info and "xmp" not in image.info:
        return 1  # `getexif` would decode the whole image
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # unreadable EXIF: viewers then show the pixels as stored
        return 1


def _transpose_step(image: Image.Image) -> Image.Transpose | None:
    from PIL.Image import Transpose

    if image.format == "TIFF":
        return None
    steps = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return steps.get(_orientation(image))


def _need_standard(image: Image.Image) -> None:
    """Raises RowFault (unsupported_pixels) if no standard says which colours the pixels are."""
    if image.mode in ("I", "F", "LAB") and not (image.mode == "I" and image.format == "PNG"):
        raise RowFault(
            "unsupported_pixels", f"pixels of mode {image.mode} have no standard conversion to RGB"
        )


def _to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    _need_standard(image)
    if image.mode == "CMYK":
        return _from_cmyk(image)
    if image.format == "JPEG" and image.mode == "RGB":
        return image  # no copy
    alpha = alpha_of(image, data)
    if image.mode.startswith("I"):
        rgb = _from_16_bits(image)
    else:
        rgb = image.convert("RGBA").convert("RGB") if alpha and image.mode == "P" else image.convert("RGB")
    return rgb if alpha is None else _on_white(rgb, alpha)


def _from_16_bits(image: Image.Image) -> Image.Image:
    table = [(value + 128) // 257 for value in range(65536)]  # 65535 / 257 = 255
    return image.convert("I").point(table, "L").convert("RGB")


def _from_cmyk(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            found = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):  # ignore a broken profile
            return image.convert("RGB")
        assert found is not None  # None only with inPlace
        return found
    return image.convert("RGB")


def _on_white(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    from PIL import Image

    white = Image.new("RGB", rgb.size, (255, 255, 255))
    white.paste(rgb, mask=alpha)
    return white
