"""Hashes the footer of a Parquet file. Page checksums do not cover it; a flipped bit there may hide rows or crash a reader.

So a shard's receipt (the record of the finished shard) has the sha256 of its footer, which is checked before parsing it.
"""

from __future__ import annotations

import hashlib
import io
from typing import IO

MAGIC = b"PAR1"
END = 8  # bytes after the footer: 4 for its length, 4 for the magic number


def footer_digest(file: IO[bytes]) -> str:
    """Returns the sha256 of the footer and the 8 bytes after it, as 64 hexadecimal digits.

    Raises ValueError if the file does not end like a Parquet file.
    """
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(max(0, num_bytes - END))
    end = file.read(END)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != MAGIC or length > num_bytes - END - len(MAGIC):
        raise ValueError("the file does not end with PAR1, as a Parquet file does")
    file.seek(num_bytes - END - length)
    return hashlib.sha256(file.read(length + END)).hexdigest()
