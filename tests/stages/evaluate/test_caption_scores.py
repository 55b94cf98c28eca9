from __future__ import annotations

import math
import sys
from collections import Counter

import numpy as np
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.evaluate.caption_scores import caption_scores, ptb_like

TOKENS = [
    ("A man's dog doesn't sit.", "a man 's dog does n't sit"),
    ("They can't, won't & cannot!", "they ca n't wo n't & can not"),
    ("A t-shirt (red) -- 3.5 m; 1,000 people...", "a t-shirt red 3.5 m 1,000 people"),
    ('The sign says: "STOP"', "the sign says stop"),
    ("it\u2019s the dogs' ball", "it 's the dogs ball"),
    ("  two   dogs\n", "two dogs"),
    ("...", ""),
    ("50% off, $5", "50 % off $ 5"),
    ("caf\u00e9", "caf\u00e9"),
]


@pytest.mark.parametrize(("text", "tokens"), TOKENS)
def test_tokens_are_as_the_penn_treebank_splits_them(text: str, tokens: str) -> None:
    assert ptb_like(text) == tokens


def slow_cider(captions: list[str], references: list[list[str]]) -> float:
    """CIDEr-D of Vedantam et al., sections 4 and 5, sigma 6, over dense n-gram vectors."""

    def grams(words: str, n: int) -> Counter[tuple[str, ...]]:
        w = words.split()
        return Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1))

    total = 0.0
    for n in range(1, 5):
        df = Counter(g for refs in references for g in {g for r in refs for g in grams(r, n)})

        def vector(words: str, n: int = n, df: Counter[tuple[str, ...]] = df) -> dict[tuple[str, ...], float]:
            return {
                g: c * (math.log(len(captions)) - math.log(max(1, df[g]))) for g, c in grams(words, n).items()
            }

        for caption, refs in zip(captions, references, strict=True):
            for ref in refs:
                a, b = vector(caption), vector(ref)
                norms = np.linalg.norm(list(a.values())) * np.linalg.norm(list(b.values()))
                dot = sum(min(v, b.get(g, 0)) * b.get(g, 0) for g, v in a.items())
                gap = max(0, len(caption.split()) - 1) - max(0, len(ref.split()) - 1)  # it counts bigrams
                total += (dot / norms if norms else 0) * math.exp(-(gap**2) / 72) / len(refs)
    return 10 * total / 4 / len(captions)


def slow_bleu(captions: list[str], references: list[list[str]]) -> float:
    """Corpus BLEU-4 of Papineni et al., with the closest reference length."""
    logs, length, wanted = 0.0, 0, 0
    for n in range(1, 5):
        hits = tries = 0
        for caption, refs in zip(captions, references, strict=True):
            w = caption.split()
            mine = Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1))
            most: Counter[tuple[str, ...]] = Counter()
            for ref in refs:
                r = ref.split()
                most |= Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1))
            hits, tries = hits + (mine & most).total(), tries + mine.total()
            if n == 1:
                length += len(w)
                wanted += min((abs(len(r.split()) - len(w)), len(r.split())) for r in refs)[1]
        logs += math.log(hits / tries) / 4
    return math.exp(logs + min(0, 1 - wanted / length))


CAPTIONS = [
    "a red circle on the left of a blue square",
    "two small dogs run on the green grass",
    "a star above a circle",
]
REFERENCES = [
    ["a red circle left of a blue square", "a red circle on the left of a large blue square"],
    [
        "two dogs run on the grass",
        "two small brown dogs run on the green grass today",
        "dogs on the green grass",
    ],
    ["a yellow star above a circle"],
]


def test_scores_equal_the_papers_formulas() -> None:
    found, _ = caption_scores(CAPTIONS, REFERENCES)
    assert found["cider"] == pytest.approx(slow_cider(CAPTIONS, REFERENCES), rel=1e-6)
    assert found["bleu@4"] == pytest.approx(slow_bleu(CAPTIONS, REFERENCES), rel=1e-4)


def test_identical_captions_get_ten_and_one_whatever_case_and_punctuation() -> None:
    captions = ["A red circle, on the left.", "two small dogs run", "a star above a circle"]
    found, _ = caption_scores(captions, [[c.upper()] for c in captions])
    assert found == {"cider": pytest.approx(10), "bleu@4": pytest.approx(1, abs=1e-6)}


def test_an_empty_caption_costs_points_and_does_not_break_the_scorers() -> None:
    found, _ = caption_scores(["", *CAPTIONS[1:]], REFERENCES)
    assert found["cider"] == pytest.approx(slow_cider(["", *CAPTIONS[1:]], REFERENCES), rel=1e-6)


def test_one_image_and_a_missing_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        VlpipeError, match=r"CIDEr needs at least 2 images \(its weights are document frequencies\), got 1"
    ):
        caption_scores(["a dog"], [["a dog"]])
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(VlpipeError, match=r"pip install 'vlpipe\[eval\]'"):
        caption_scores(["a dog", "a cat"], [["a dog"], ["a cat"]])


def test_references_without_a_word_are_named() -> None:
    with pytest.raises(VlpipeError, match=r"no reference has a word, such as '\.\.\.'"):
        caption_scores(["a dog", "a cat"], [["..."], [":-)"]])
