"""How often a text repeats itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_GRAM = 12  # words of what is repeated in a loop
MAX_WORDS = 4_000  # of a text that are looked at
NO_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")  # scripts without spaces


def num_repeats(text: str) -> int:
    """Returns how often an n-gram of up to MAX_GRAM words stands in a row, at most; 1: nothing is repeated, 0: no word.

    A single word counts half: "very very good" is no loop. Characters count as words in scripts without spaces. Linear in
    the length of the text.
    """
    tokens: Sequence[str] = text.lower().split()
    if NO_SPACES.search(text):
        tokens = text.replace(" ", "")
    tokens = tokens[:MAX_WORDS]
    most = min(1, len(tokens))
    for size in range(1, min(MAX_GRAM, len(tokens) // 2) + 1):
        run = longest = 0
        for at in range(size, len(tokens)):
            run = run + 1 if tokens[at] == tokens[at - size] else 0
            longest = max(longest, run)
        times = longest // size + 1
        most = max(most, times // 2 if size == 1 else times)
    return most
