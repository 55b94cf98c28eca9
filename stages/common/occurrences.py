"""How often each row of a list came before: 23 to 29 bytes per different row, whatever the length of its texts.

A `Counter` of the rows themselves takes 300 to 400. Keys are 96 bits of a SHA-256: of a thousand million rows two share
one with a chance of 6 in 10^12.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError

Words = npt.NDArray[np.uint64]  # (B, 2): 64 bits of the key; 32 bits of it, and below them a count
Places = npt.NDArray[np.int64]  # (B,)

FIRST_HOMES = 1 << 14
MAX_LOAD, GROWTH = 0.7, 1.25  # small steps: a table that doubles is half empty, and has 38 bytes per row
MOVED_AT_ONCE = 1 << 14  # slots
HALF = np.uint64(32)
COUNT = np.uint64(0xFFFF_FFFF)


class Occurrences:
    """A hash table of uint64[slots, 2] with linear probing, which is asked for a batch of keys at a time.

    A count of 0 is a free slot. A key's home slot grows with the key, so the table is in order but for what probing
    moved a little. Therefore it can grow in place, from its end to its beginning: no second table is ever in memory.
    """

    def __init__(self, num_homes: int = FIRST_HOMES) -> None:
        self._num_homes, self._num_keys = num_homes, 0
        self._slots: Words = np.zeros((_num_slots(num_homes), 2), np.uint64)

    def count(self, digests: bytes, size: int) -> Places:
        """Per digest, each `size` >= 12 bytes long: how often it came before, in this call or an earlier one."""
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
        """Count each key `times` more; how often it was counted before. The keys differ and are in order."""
        before = np.zeros(len(words), np.int64)
        left, at = np.arange(len(words)), self._homes(words[:, 0])
        while len(left):
            if at[-1] >= len(self._slots):
                self._slots.resize((int(at[-1]) + 1, 2), refcheck=False)
            here = self._slots.take(at, axis=0)
            counts = here[:, 1] & COUNT
            free = counts == 0
            known = (here[:, 0] == words[:, 0]) & (here[:, 1] - counts == words[:, 1]) & ~free
            free[1:] &= at[1:] != at[:-1]  # of two that find the same free slot the first takes it
            before[left[known]] = counts[known].astype(np.int64)
            self._slots[at[known], 1] += times[left[known]]
            taken = words[free]
            taken[:, 1] |= times[left[free]]
            self._slots[at[free]] = taken
            self._num_keys += len(taken)
            on = ~(free | known)
            left, at, words = left[on], at[on] + 1, words[on]
        return before

    def _homes(self, keys: Words) -> Places:
        return ((keys >> HALF) * np.uint64(self._num_homes) >> HALF).astype(np.int64)

    def _grow(self) -> None:
        """Cut at free slots, the table falls into parts that are moved one by one, each to where no other will be."""
        stop, homes = len(self._slots), int(self._num_homes * GROWTH)
        if homes >= 1 << 32:
            raise VlpipeError(
                f"a list has at most {int(MAX_LOAD * (1 << 32)):,} different rows; part it in several"
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
    """The last homes need slots behind them; there are more, should these not do."""
    return num_homes + num_homes // 256
