"""Images of the accepted formats. What is accepted decodes to the size that its row states."""

import io
import struct
import zlib

import numpy as np
from kind import Kind
from PIL import Image

from vlpipe.stages.common.pixels import decode, verify

MAX_PIXELS = 1 << 20
PICTURE = Image.fromarray((np.indices((13, 17)).sum(0) * 7 % 256).astype(np.uint8))


def written(format: str, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    PICTURE.convert(mode).save(out, format, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read(data: bytes) -> None:
    found = verify(data, max_pixels=MAX_PIXELS)
    assert decode(data, max_pixels=MAX_PIXELS).size == (found.width, found.height)


EXIF = Image.Exif()
EXIF[0x0112] = 6
FRAMES = [PICTURE.convert("P"), PICTURE.rotate(90).convert("P")]
PNG, GIF, JPEG = written("PNG"), written("GIF", "P"), written("JPEG")
SOF = JPEG.index(b"\xff\xc0")
SOS = JPEG.index(b"\xff\xda")
KIND = Kind(
    name="images",
    read=read,
    seeds=(
        *(
            JPEG,
            written("JPEG", "CMYK"),
            written("JPEG", "L", progressive=True),
            written("JPEG", exif=EXIF),
            written("JPEG", restart_marker_blocks=1),
        ),
        *(
            PNG,
            written("PNG", "P", transparency=3),
            written("PNG", "LA"),
            written("PNG", "I;16"),
            written("PNG", "1"),
            written("PNG", "RGBA", exif=EXIF),
        ),
        *(
            GIF,
            written("GIF", "P", save_all=True, append_images=FRAMES),
            written("PNG", "RGB", save_all=True, append_images=[PICTURE]),
        ),
        *(
            written("WEBP"),
            written("WEBP", "RGBA", lossless=True),
            written("WEBP", "RGB", save_all=True, append_images=[PICTURE]),
            written("AVIF"),
        ),
        *(
            written("BMP"),
            written("BMP", "1"),
            written("ICO"),
            written("TIFF"),
            written("TIFF", "L", compression="tiff_lzw"),
            written("TIFF", "F"),
        ),
        *(
            written("TIFF", "RGB", compression="jpeg"),
            written("MPO", "RGB", save_all=True, append_images=[PICTURE]),
        ),
    ),
    pieces=(
        *(
            b"\xff\xd8",
            b"\xff\xd9",
            b"\xff\xda",
            b"\xff\xc0",
            b"\xff\xc2",
            b"\xff\xd0",
            b"\xff\xe0\x00\x04ab",
            b"\xff\xfe\x00\x02",
            b"\xff\xff",
            b"\xff\x00",
        ),
        *(
            JPEG[SOS : SOS + 14],
            chunk(b"tEXt", b"a\0b"),
            chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b" * 999)),
            chunk(b"IDAT"),
            chunk(b"iCCP", b"a\0\0x"),
        ),
        *(
            chunk(b"fcTL", bytes(26)),
            chunk(b"fdAT", bytes(5)),
            chunk(b"acTL", bytes(8)),
            b"!\xfe\x01a\x00",
            b",\0\0\0\0\x01\0\x01\0\0\x02\x02L\x01\0",
            b"!\xf9\x04\0\0\0\0\0",
        ),
        *(
            b"\x01a",
            b"RIFF",
            b"VP8 ",
            b"ANMF\x04\0\0\0abcd",
            b"XXXX\0\0\0\0",
            b"\0\0\0\x08free",
            b"\0\0\0\x10ftypavif\0\0\0\0",
            b"\0\x01\0\0",
            b"II*\0",
            b"\0\0",
        ),
    ),
    frames=(
        *(
            (b"", b""),
            (JPEG[:2], JPEG[2:]),
            (JPEG[:SOS], JPEG[SOS:]),
            (JPEG[:-2], JPEG[-2:]),
            (JPEG[: SOS + 20], JPEG[-2:]),
            (JPEG, b""),
        ),
        *(
            (PNG[:8], PNG[8:]),
            (PNG[:33], PNG[33:]),
            (PNG[:-12], PNG[-12:]),
            (PNG, b""),
            (GIF[:13], GIF[13:]),
            (GIF[:-1], GIF[-1:]),
            (GIF[:13], b""),
        ),
        *(
            (written("WEBP")[:12], written("WEBP")[12:]),
            (written("AVIF")[:32], written("AVIF")[32:]),
            (written("TIFF")[:8], b""),
            (b"\0\0\x01\0\xff\xff", b""),
        ),
    ),
)
