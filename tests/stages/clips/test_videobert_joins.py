"""VideoBERT's joining of neighbouring sentences: each is in one text, of 1 / (1 - join) sentences on average."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.testing import run_map
from vlpipe.stages.clips.videobert import VideoBert

Videos = Callable[..., pa.Table]
NUM = 400


@pytest.fixture
def talk(videos: Videos) -> pa.Table:
    """Sentences of one word each, five seconds apart."""
    return videos([[(5.0 * k, 5.0 * k + 2, f"w{k}") for k in range(NUM)]], duration_s=5.0 * NUM)


def texts(rows: pa.Table, **more: float) -> list[tuple[float, float, str]]:
    found = run_map(VideoBert(**more), rows).table.to_pylist()  # type: ignore[arg-type]
    return [(r["start_s"], r["end_s"], r["texts"][0]["text"]) for r in found]


def test_without_joining_a_text_is_a_sentence(talk: pa.Table) -> None:
    assert texts(talk) == [(5.0 * k, 5.0 * k + 2, f"w{k}") for k in range(NUM)]


def test_neighbours_are_joined_at_random(talk: pa.Table) -> None:
    found = texts(talk, join=0.5)
    assert " ".join(text for _, _, text in found).split() == [f"w{k}" for k in range(NUM)]
    for start_s, end_s, text in found:
        first, *_, last = [int(w[1:]) for w in [*text.split(), text.split()[-1]]]
        assert (start_s, end_s) == (5.0 * first, 5.0 * last + 2)
    lengths = np.array([len(text.split()) for _, _, text in found])
    assert abs(lengths.mean() - 2) < 0.3  # the standard error is about 0.1
    assert abs((lengths == 1).mean() - 0.5) < 0.12
    assert texts(talk, join=0.5) == found
    assert texts(talk, join=0.5, seed=1) != found


def test_copies_are_other_draws(talk: pa.Table) -> None:
    one, three = texts(talk, join=0.5), texts(talk, join=0.5, copies=3)
    assert set(one) < set(three)
    assert len(set(three)) == len(three) > 1.5 * len(one)
    assert texts(talk, copies=3) == texts(talk)
