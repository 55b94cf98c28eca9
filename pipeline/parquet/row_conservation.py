"""Row conservation: every input id must be returned or rejected, and no other id may appear."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from vlpipe.pipeline.errors import VlpipeError

Ids = Callable[[], Iterator[list[str]]]  # each call reads all ids again, in batches


def check_conserved(who: str, ids_in: Counter[str], ids_out: Counter[str], rejected: Counter[str]) -> None:
    """Raises VlpipeError unless every input id was returned or rejected, exactly once, and no other id occurs."""
    if ids_in == ids_out + rejected:
        return
    lost = ids_in - ids_out - rejected
    extra = (ids_out + rejected) - ids_in
    raise _broken(who, (lost.total(), next(iter(lost), "")), (extra.total(), next(iter(extra), "")))


def check_has_children(
    who: str, ids_in: Iterable[str], parents: Iterable[str], rejected: Iterable[str]
) -> None:
    """Raises VlpipeError unless every input id is the parent of an output row or rejected, and no other id is either.

    For stages whose output rows are children of their input rows (FAN_OUT).
    """
    have = set(parents)
    check_conserved(who, Counter(set(ids_in)), Counter(have), Counter(set(rejected) - have))


def _broken(who: str, lost: tuple[int, str], extra: tuple[int, str]) -> VlpipeError:
    parts = [
        f"{num} row(s) {what} (first: {first})"
        for what, (num, first) in (("lost", lost), ("too many", extra))
        if num
    ]
    return VlpipeError(
        f"{who} breaks row conservation: {' and '.join(parts)}. Every input row must be returned or rejected "
        "exactly once, and no other row may be returned"
    )


class IdHashes:
    """A multiset of ids that stores 8 bytes per id: Python's 64-bit `hash`, valid only in this process."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, ids: Iterable[str]) -> None:
        self._hashes.extend(map(hash, ids))

    def sorted(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Returns the hashes in ascending order, (num_ids,)."""
        found = np.frombuffer(self._hashes, np.int64).copy() if self._hashes else np.zeros(0, np.int64)
        found.sort()
        return found


def check_conserved_large(who: str, ids_in: Ids, ids_out: Ids, rejected: IdHashes) -> None:
    """Raises VlpipeError as `check_conserved` does, but for a whole step, with 16 to 32 bytes of memory per row.

    Ids are read a second time only to name one in the error.
    """
    came, went = IdHashes(), IdHashes()
    for ids in ids_in():
        came.add(ids)
    for ids in ids_out():
        went.add(ids)
    here = came.sorted()
    there = np.sort(np.concatenate([went.sorted(), rejected.sorted()]))
    if np.array_equal(here, there):
        return
    lost, extra = _surplus(here, there), _surplus(there, here)
    raise _broken(
        who,
        (sum(lost.values()), _first_id(lost, ids_in)),
        (sum(extra.values()), _first_id(extra, ids_out)),
    )


def _surplus(left: np.ndarray, right: np.ndarray) -> dict[int, int]:
    """Returns hash -> count in `left` minus count in `right`, where positive."""
    values, counts = np.unique(left, return_counts=True)
    others, other_counts = np.unique(right, return_counts=True)
    place = np.searchsorted(others, values)
    place[place == len(others)] = 0
    known = (
        np.where(others[place] == values, other_counts[place], 0)
        if len(others)
        else np.zeros(len(values), int)
    )
    more = counts - known
    return {int(v): int(n) for v, n in zip(values[more > 0], more[more > 0], strict=True)}


def _first_id(hashes: dict[int, int], ids: Ids) -> str:
    """Returns the first id with one of the hashes, in reading order; "a rejected id" if `ids` has none."""
    return (
        next((one for some in ids() for one in some if hash(one) in hashes), "a rejected id")
        if hashes
        else ""
    )
