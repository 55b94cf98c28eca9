"""The made languages that mixtures of experts are compared on."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.demo.tasks.dialects import Dialects


def texts(folder: Path, stage: Dialects) -> list[list[str]]:
    folder.mkdir()
    return [one[0]["text"].split(" ") for one in run_gather(stage, [], folder).table["texts"].to_pylist()]


def test_words_follow_the_rule_of_their_dialect(tmp_path: Path) -> None:
    stage = Dialects(num=400, dialects=3, words=10, rule=0.8)
    found = texts(tmp_path / "a", stage)
    assert found == texts(tmp_path / "again", stage)
    held_out = texts(tmp_path / "b", Dialects(num=400, dialects=3, words=10, rule=0.8, draw=1))
    assert not {tuple(one) for one in found} & {tuple(one) for one in held_out}
    assert {len(one) for one in found} == {32}
    assert len({one[0] for one in found}) == 3
    after: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for one in found:
        for before, word in pairwise(one[1:]):
            after[one[0], before][word] += 1
    rules = {key: counts.most_common(1)[0] for key, counts in after.items()}
    assert len(rules) == 30
    share = sum(num for _, num in rules.values()) / sum(sum(counts.values()) for counts in after.values())
    assert share == pytest.approx(0.8 + 0.2 / 10, abs=0.01)
    # each dialect is a permutation, the same in held-out texts
    assert all(len({rules[name, w][0] for name_, w in rules if name_ == name}) == 10 for name, _ in rules)
    again = [rules[one[0], b][0] == w for one in held_out for b, w in pairwise(one[1:])]
    assert sum(again) / len(again) == pytest.approx(0.82, abs=0.01)


def test_dialects_may_differ_in_how_often_they_come(tmp_path: Path) -> None:
    counts = Counter(one[0] for one in texts(tmp_path / "a", Dialects(num=3000, dialects=3, skew=1.0)))
    assert [num / 3000 for _, num in counts.most_common()] == pytest.approx(
        [6 / 11, 3 / 11, 2 / 11], abs=0.03
    )


def test_the_least_loss_is_the_entropy_of_a_word() -> None:
    probs = [0.5 + 0.125, *[0.125] * 3]
    assert Dialects(words=4, rule=0.5).least_nats == pytest.approx(-sum(p * math.log(p) for p in probs))
