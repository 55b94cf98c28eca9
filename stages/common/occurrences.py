"""Counts how often each row of a list occurred before, in 23 to 29 bytes per distinct row, whatever its length.

A `Counter` of the rows themselves takes 300 to 400 bytes per row. Keys are 96 bits of a SHA-256: among 10^9 rows, the
probability that two different rows share a key is 6e-12.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError

Words = npt.NDArray[np.uint64]  # (B, 2): first 64 bits of the key; its last 32 bits, then a 32-bit count
Places = npt.NDArray[np.int64]  # (B,)

FIRST_HOMES = 1 << 14
MAX_LOAD, GROWTH = 0.7, 1.25  # small growth steps: doubling leaves the table half empty, at 38 bytes per row
MOVED_AT_ONCE = 1 << 14  # slots moved per step while the table grows
HALF = np.uint64(32)
COUNT = np.uint64(0xFFFF_FFFF)


class Occurrences:
    """A hash table of uint64 (slots, 2) with linear probing, queried with a batch of keys at a time.

    A slot with a count of 0 is free. The home slot of a key is where probing starts. Larger keys have later home slots, so
    the table is sorted except for small shifts by probing. It can therefore grow in place, from its end to its start,
    without a second table in memory.
    """

    def __init__(self, num_homes: int = FIRST_HOMES) -> None:
        self._num_homes, self._num_keys = num_homes, 0
        self._slots: Words = np.zeros((_num_slots(num_homes), 2), np.uint64)

    def count(self, digests: bytes, size: int) -> Places:
        """Returns (B,): how often each digest occurred before, in this call or an earlier one.

        digests: B digests of `size` bytes each, `size` >= 12. Raises VlpipeError if the table would need 2^32 home slots
        or more (2.4e9 to 3.0e9 distinct rows).
        """
        keys = np.frombuffer(digests, np.uint8).reshape(-1, size)[:, :12].copy().view(np.uint32)
        words = np.empty((len(keys), 2), np.uint64)
        words[:, 0] = keys[:, 0].astype(np.uint64) << HALF | keys[:, 1]
        words[:, 1] = keys[:, 2].astype(np.uint64) << HALF
        order = np.lexsort((words[:, 1], words[:, 0]))
        words = words[order]
        is_first = np.ones(len(words), np.bool_)
        is_first[1:] = (words[1:] != words[:-1]).any(axis=1)
        firsts = np.flatnonzero(is_first)
        times = np.diff(firsts, append=len(words))
        self._reserve(len(firsts))
        before = self._add(words[firsts], times.astype(np.uint64))
        found = np.empty(len(words), np.int64)
        found[order] = np.repeat(before - firsts, times) + np.arange(len(words))
        return found

    def _reserve(self, num_more: int) -> None:
        while self._num_keys + num_more > MAX_LOAD * self._num_homes:
            self._grow()

    def _add(self, words: Words, times: Words) -> Places:
        """Adds `times` (B,) to the counts of the keys `words`; returns the counts before that (B,).

        The keys must be distinct and sorted, with 0 in the bits that hold the count (COUNT).
        """
        before = np.zeros(len(words), np.int64)
        left, at = np.arange(len(words)), self._homes(words[:, 0])
        while len(left):
            if at[-1] >= len(self._slots):
                self._slots.resize((int(at[-1]) + 1, 2), refcheck=False)
            slots = self._slots.take(at, axis=0)
            counts = slots[:, 1] & COUNT
            free = counts == 0
            known = (slots[:, 0] == words[:, 0]) & (slots[:, 1] - counts == words[:, 1]) & ~free
            free[1:] &= at[1:] != at[:-1]  # if two keys reach the same free slot, the first takes it
            before[left[known]] = counts[known].astype(np.int64)
            self._slots[at[known], 1] += times[left[known]]
            taken = words[free]
            taken[:, 1] |= times[left[free]]
            self._slots[at[free]] = taken
            self._num_keys += len(taken)
            unplaced = ~(free | known)
            left, at, words = left[unplaced], at[unplaced] + 1, words[unplaced]
        return before

    def _homes(self, keys: Words) -> Places:
        return ((keys >> HALF) * np.uint64(self._num_homes) >> HALF).astype(np.int64)

    def _grow(self) -> None:
        """Grows in place: cuts the table at free slots and moves the parts one by one, from the last to the first."""
        stop, homes = len(self._slots), int(self._num_homes * GROWTH)
        if homes >= 1 << 32:
            raise VlpipeError(
                f"a list may have at most {int(MAX_LOAD * (1 << 32)):,} distinct rows; split it into several lists"
            )
        size = max(_num_slots(homes), int(stop * homes / self._num_homes) + 2)
        self._num_homes = homes
        self._slots.resize((size, 2), refcheck=False)
        while stop:
            start = max(0, stop - MOVED_AT_ONCE)
            while start and self._slots[start - 1, 1]:
                start -= 1
            part = self._slots[start:stop]
            words = part[part[:, 1] & COUNT > 0]
            part[:] = 0
            words = words[np.argsort(words[:, 0], kind="stable")]
            places = np.arange(len(words))
            places += np.maximum.accumulate(self._homes(words[:, 0]) - places)
            self._slots[places] = words
            stop = start


def _num_slots(num_homes: int) -> int:
    """Returns the number of slots: home slots, and spare ones for keys that probing moves past the last home slot.

    `_add` appends more if needed.
    """
    return num_homes + num_homes // 256
