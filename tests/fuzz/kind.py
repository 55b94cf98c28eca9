"""What the fuzzer knows of a kind of input, and how it makes inputs: by mutating seeds, and by repeating pieces."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vlpipe.pipeline.errors import RowFault, VlpipeError

MAX_MUTANT_BYTES = 1 << 15
NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"0.1", b"9" * 20, b"9" * 5000, b"4294967296", b"99:99:99.999")
BYTES = (
    b"\x00",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\t",
    b" ",
    b'"',
    b"\xf0\x9f\x98\x80",
)


class Shape(NamedTuple):
    """An input of any size: `opening` is repeated, then `closing` as many times, within `before`, `middle`, `after`."""

    before: bytes
    opening: bytes
    middle: bytes
    closing: bytes
    after: bytes

    def of(self, num_bytes: int) -> bytes:
        """Returns the input whose repeated part has about `num_bytes` bytes."""
        times = max(1, num_bytes // len(self.opening + self.closing))
        return b"".join((self.before, self.opening * times, self.middle, self.closing * times, self.after))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of input. seeds: valid ones. pieces: what has a meaning in it. frames: (before, after) of repeated pieces.

    read: reads an input; raises one of `typed` if it refuses it, and AssertionError if what it made of it is wrong.
    max_bytes: of a shape; larger ones are not tried.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    pieces: Sequence[bytes]
    frames: Sequence[tuple[bytes, bytes]]
    typed: tuple[type[Exception], ...] = (VlpipeError, RowFault)
    max_bytes: int = 1 << 22

    def refuses(self, data: bytes) -> bool:
        """Reads an input; returns whether it is refused. Raises what `read` raises, if that is not typed."""
        try:
            self.read(data)
        except self.typed:
            return True
        return False


def pieces(text: str) -> tuple[bytes, ...]:
    """Returns the pieces of a text, which stand between `¦`; its characters are bytes."""
    return tuple(text.encode("latin-1").split(b"\xa6"))


def mutant(rng: random.Random, kind: Kind) -> bytes:
    """Returns a seed after one to eight random changes."""
    data = rng.choice(kind.seeds)
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
        data = _changed(rng, kind, data)[:MAX_MUTANT_BYTES]
    return data


def _changed(rng: random.Random, kind: Kind, data: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    end = min(end, start + rng.choice((1, 4, 20, 200)))
    old = data[start:end]
    match rng.randrange(9):
        case 0:
            new = bytes([rng.randrange(256)]) + old[1:]
        case 1:
            new = bytes([old[0] ^ (1 << rng.randrange(8))]) + old[1:] if old else b""
        case 2:
            new = b""
        case 3:
            new = old * rng.choice((2, 3, 50))
        case 4:
            new = old + rng.choice(kind.pieces) * rng.choice((1, 1, 2, 30))
        case 5:
            other = rng.choice(kind.seeds)
            at = rng.randrange(len(other) + 1)
            new = other[at : at + rng.choice((4, 40, 400))]
        case 6:
            new = rng.choice(BYTES) * rng.choice((1, 2, 40))
        case 7:
            found = list(re.finditer(rb"[0-9]+", data))
            if not found:
                return data + rng.choice(NUMBERS)
            number = rng.choice(found)
            return data[: number.start()] + rng.choice(NUMBERS) + data[number.end() :]
        case _:
            return data[:start] if rng.random() < 0.3 else data[:start] + data[end:] + old
    return data[:start] + new + data[end:]


def shape(rng: random.Random, kind: Kind) -> Shape:
    """Returns a Shape of one to three pieces, in a frame; every third is nested."""
    before, after = rng.choice(kind.frames)

    def some(most: int) -> bytes:
        return b"".join(rng.choice((*kind.pieces, *kind.pieces, *BYTES)) for _ in range(rng.randint(1, most)))

    closing = some(1) if rng.random() < 0.34 else b""
    return Shape(before, some(3), some(1) if rng.random() < 0.3 else b"", closing, after)
