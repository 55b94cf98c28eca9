"""A case before it is played."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from incremental.edits import EDITS

# What is done to the root, beside the edits of the project; with the kinds of stages each needs.
DEEDS: dict[str, tuple[str, ...]] = {
    "kill": (),
    "kill_later": (),
    "retry": (),
    "retry_killed": (),
    "damage": (),
    "remade": ("Tag", "Look"),
    "prune": (),
    "elsewhere": ("Pair",),
    "strict": (),
    "until": (),
    "duplicate": ("Look",),
    "back": (),
    "retry_grow": (),
    "kill_grow": (),
    "kill_code": (),
}
KINDS = (*EDITS, *DEEDS)
LENGTHS = (3, 4, 5, 6)  # of cases, in turn
WORK = ("param", "grow", "reorder", "shard_rows", "new_step", "version", "file_content", "rename")


@dataclass(frozen=True)
class Drawn:
    """A case before it is played: where its project comes from, and what is done, each with a seed of its own."""

    project: str
    deeds: tuple[tuple[str, str], ...]
    leave_out: tuple[str, ...] = ()


def draw(number: int, seed: int, leave_out: Sequence[str] = (), kinds: Sequence[str] = ()) -> Drawn:
    """Case `number`. Kinds come from one shuffled deck after the other, so that all come equally often."""
    have = [k for k in (kinds or KINDS) if k not in leave_out]
    rounds, at = divmod(number, len(LENGTHS))
    first = rounds * sum(LENGTHS) + sum(LENGTHS[:at])
    chosen = [_dealt(n, seed, have) for n in range(first, first + LENGTHS[at])]
    deeds = tuple((kind, f"{seed}:{number}:{at}") for at, kind in enumerate(chosen))
    return Drawn(f"{seed}:{number}:project", deeds, tuple(leave_out))


def _dealt(n: int, seed: int, kinds: Sequence[str]) -> str:
    """Card `n` of all decks in a row."""
    deck, at = divmod(n, len(kinds))
    return random.Random(f"{seed}:deck {deck}").sample(kinds, len(kinds))[at]
