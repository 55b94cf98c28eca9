"""Memory for columns of images that is used again: the kernel takes longer to clear new memory than to copy images into it.

For images of 48 KB, 0.03 ms each, as long as hashing them.
"""

from __future__ import annotations

import pyarrow as pa

MAX_BLOCKS = 3  # a part of a batch is collected while the last one waits for its row group
MAX_BYTES = 1 << 26  # a larger block is not kept


class Blocks:
    """Blocks of memory, of which Arrow may hold some. At most MAX_BLOCKS of MAX_BYTES are kept."""

    def __init__(self) -> None:
        self._kept: list[bytearray] = []

    def buffer(self, num_bytes: int) -> pa.Buffer:
        """Returns a buffer of this size with any content, which nobody else holds."""
        if not 0 < num_bytes <= MAX_BYTES:
            return pa.allocate_buffer(num_bytes)
        block = next((one for one in self._kept if len(one) >= num_bytes and _is_free(one)), None)
        if block is None:
            block = bytearray(num_bytes + num_bytes // 8)  # a little more, as the next may be larger
            self._kept = [*(one for one in self._kept if not _is_free(one)), block][-MAX_BLOCKS:]
        return pa.py_buffer(memoryview(block)[:num_bytes])


def _is_free(block: bytearray) -> bool:
    """Returns whether no buffer of it is held; if one is, Python refuses to change its length."""
    try:
        block.append(block.pop())
    except BufferError:
        return False
    return True
