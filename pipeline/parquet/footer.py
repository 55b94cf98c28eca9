"""The footer of a Parquet file: page checksums do not cover it, and a flipped bit there may hide rows or end the process.

So the record of a shard has the sha256 of its footer, which is looked at before a library reads it.
"""

from __future__ import annotations

import hashlib
import io
from typing import IO

MAGIC = b"PAR1"
END = 8  # bytes after the footer: its length, and the magic word


def footer_digest(file: IO[bytes]) -> str:
    """sha256 of the footer and what follows it. ValueError: the file does not end as Parquet does."""
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(max(0, num_bytes - END))
    end = file.read(END)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != MAGIC or length > num_bytes - END - len(MAGIC):
        raise ValueError("it does not end as Parquet does")
    file.seek(num_bytes - END - length)
    return hashlib.sha256(file.read(length + END)).hexdigest()
