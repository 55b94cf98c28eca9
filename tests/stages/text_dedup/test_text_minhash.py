from __future__ import annotations

import random
import sys
from collections.abc import Sequence

import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.text_dedup import minhash
from vlpipe.stages.text_dedup.forms import jaccard, normal_form, shingles
from vlpipe.stages.text_dedup.minhash import near_duplicates, num_bands

WORDS = "dog cat man woman child red blue green runs jumps sits over under street park ball".split()  # noqa: SIM905


def reference(forms: Sequence[str], threshold: float) -> list[tuple[int, float]]:
    """Greedy over all pairs."""
    sets, kept, found = [shingles(f) for f in forms], [], []
    for place, mine in enumerate(sets):
        alike, minus = max(((jaccard(mine, sets[k]), -k) for k in kept), default=(0.0, 1))
        if minus <= 0 and alike >= threshold:
            found.append((-minus, alike))
        else:
            kept.append(place)
            found.append((-1, 1.0))
    return found


def variants(num: int) -> list[str]:
    """Texts and slightly changed copies of them."""
    rng = random.Random(0)
    forms: list[str] = []
    for _ in range(num):
        words = [rng.choice(WORDS) for _ in range(rng.randint(2, 14))]
        if forms and rng.random() < 0.5:
            words = rng.choice(forms).split()
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        forms.append(" ".join(words))
    return list(dict.fromkeys(forms))


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_the_same_as_all_pairs(threshold: float) -> None:
    forms = variants(700)
    want = reference(forms, threshold)
    assert list(near_duplicates(forms, threshold)) == want
    assert sum(w >= 0 for w, _ in want) >= 40 or threshold > 0.9


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.97])
def test_bands_are_the_fewest_that_find_999_of_1000_pairs_at_the_threshold(threshold: float) -> None:
    def recall(bands: int) -> float:
        return 1 - (1 - threshold ** (120 // bands)) ** bands

    bands = num_bands(threshold)
    assert recall(bands) >= 0.999
    assert all(recall(fewer) < 0.999 for fewer in range(10, bands) if 120 % fewer == 0)


@pytest.mark.slow
def test_all_twins_among_real_alt_texts(alt_texts: list[str]) -> None:
    threshold = 0.6
    import scipy.sparse as sparse

    forms = list(dict.fromkeys(normal_form(t) for t in alt_texts[13_000:18_000]))
    sets = [shingles(f) for f in forms]
    number = {s: n for n, s in enumerate(sorted(set().union(*sets)))}
    cells = [(row, number[s]) for row, one in enumerate(sets) for s in one]
    holds = sparse.csr_matrix(([1] * len(cells), tuple(zip(*cells, strict=True))))
    pairs = sparse.triu(holds @ holds.T, k=1).tocoo()
    twins: dict[int, list[tuple[float, int]]] = {}
    for a, b, shared in zip(pairs.row.tolist(), pairs.col.tolist(), pairs.data.tolist(), strict=True):
        alike = shared / (len(sets[a]) + len(sets[b]) - shared)
        if alike >= threshold:
            twins.setdefault(b, []).append((alike, -a))
    witness: dict[int, int] = {}
    for b in sorted(twins):
        kept = [(alike, minus) for alike, minus in twins[b] if -minus not in witness]
        if kept:
            witness[b] = -max(kept)[1]
    found = {place: w for place, (w, _) in enumerate(near_duplicates(forms, threshold)) if w >= 0}
    assert len(witness) == 38
    assert found == witness


def test_without_rensa_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(
        VlpipeError, match=r"dedup\.texts with a threshold needs rensa: pip install 'vlpipe\[web\]'"
    ):
        minhash.import_rensa()
