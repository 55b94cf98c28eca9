"""Finds texts that contain a caption of an evaluation set, or an n-gram of its words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlpipe.stages.decontamination.image_hits import Hit
from vlpipe.stages.text_dedup.forms import ngrams, normal_form

# Han, kana, Thai, Lao, Burmese, Khmer; Han characters beyond the first Unicode plane are rare
NO_SPACES = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")


class Captions:
    """An index over the texts of one evaluation set.

    A text matches an evaluation text of at least `n` words if they share `n` consecutive words, and a shorter one if it
    contains all of its words consecutively. Evaluation texts of fewer than `min_words` words are not compared: "a dog" may
    match by chance. Words are those of `normal_form`. In scripts without spaces (Chinese, Japanese, Thai, ...) a sentence is
    one word; it is compared, as a whole, if it has at least twice `min_words` letters.
    """

    def __init__(self, items: Sequence[tuple[str, str]], n: int, min_words: int) -> None:
        """items: (name, text) of each evaluation text."""
        forms = [(name, normal_form(text)) for name, text in items]
        self._n = n
        self._items = [(name, form) for name, form in forms if _is_evidence(form, min_words)]
        self.num_texts, self.num_short = len(items), len(items) - len(self._items)
        self._equal: dict[str, int] = {}
        self._runs: dict[str, int] = {}  # word n-gram -> the first item that contains it
        for item, (_, form) in enumerate(self._items):
            self._equal.setdefault(form, item)
            for run in self._runs_of(form):
                self._runs.setdefault(run, item)
        self._sizes = sorted({run.count(" ") + 1 for run in self._runs})

    def _runs_of(self, form: str) -> list[str]:
        words = form.split()
        return ngrams(words, min(self._n, len(words)))

    def find(self, text: str) -> Hit | None:
        """Returns the best match, or None. similarity: the fraction of the evaluation text's n-grams found, 1 if equal."""
        form = normal_form(text)
        if form in self._equal:
            return Hit("same_text", self._items[self._equal[form]][0], 1.0)
        words = form.split()
        held = {run for size in self._sizes for run in ngrams(words, size) if run in self._runs}
        found = []
        for item in {self._runs[run] for run in held}:
            runs = self._runs_of(self._items[item][1])
            found.append((sum(run in held for run in runs) / len(runs), -item))
        if not found:
            return None
        similarity, minus = max(found)
        return Hit("ngrams", self._items[-minus][0], similarity)


def _is_evidence(form: str, min_words: int) -> bool:
    return len(form.split()) >= min_words or len(NO_SPACES.findall(form)) >= 2 * min_words
