"""Ids of listed rows: the same whatever the batches, in a few bytes per row."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.common import occurrences
from vlpipe.stages.common.occurrences import Occurrences
from vlpipe.stages.common.row import ListIds, RowIds


def digests(numbers: list[int]) -> bytes:
    return b"".join(hashlib.sha256(b"%d" % number).digest() for number in numbers)


def test_an_id_is_the_sha256_of_source_url_text_and_occurrence() -> None:
    rows = [("u", "a dog"), ("u", "caf\u00e9"), ("u", "a dog"), ("", ""), ("u", "a dog"), ("\ud800", "\x00")]
    wanted = [
        b"web\x00u\x00a dog\x000",
        b"web\x00u\x00caf\xc3\xa9\x000",
        b"web\x00u\x00a dog\x001",
        b"web\x00\x00\x000",
        b"web\x00u\x00a dog\x002",
        b"web\x00\xed\xa0\x80\x00\x00\x00\x000",
    ]
    got = ListIds("web").of([url for url, _ in rows], [text for _, text in rows]).to_pylist()
    assert got == [hashlib.sha256(one).hexdigest() for one in wanted]
    single = RowIds("web")
    assert got == [single.next(url, text) for url, text in rows]


def test_rows_that_differ_in_where_their_nul_stands_get_two_ids() -> None:
    """Their texts, with NUL written twice and NUL between them, are the same."""
    assert len(set(ListIds("web").of(["a\x00", "a"], ["", "\x00"]).to_pylist())) == 2
    single = RowIds("web")
    assert single.next("a\x00", "") != single.next("a", "\x00")


@pytest.mark.parametrize("num_homes", [16, 1 << 14])
def test_occurrences_are_those_of_a_counter_while_the_table_grows(num_homes: int) -> None:
    draw, seen, plain = random.Random(1), Occurrences(num_homes), Counter[int]()
    for _ in range(120):
        often = [draw.randrange(40) for _ in range(draw.choice([1, 5, 500]))]
        rarely = [draw.randrange(60_000) for _ in range(draw.choice([1, 900, 2000]))]
        batch = draw.sample(often + rarely, len(often) + len(rarely))
        wanted = []
        for number in batch:
            wanted.append(plain[number])
            plain[number] += 1
        assert seen.count(digests(batch), 32).tolist() == wanted


def test_keys_that_differ_in_their_last_bits_only_and_crowd_at_the_end_are_told_apart() -> None:
    """All want the last home slot, so that every one but the first is moved by probing, beyond the slots there are."""
    keys = [b"\xff" * 8 + number.to_bytes(4, "big") for number in range(600)]
    seen = Occurrences(16)
    assert seen.count(b"".join(keys[:300]), 12).tolist() == [0] * 300
    assert seen.count(b"".join(keys), 12).tolist() == [1] * 300 + [0] * 300
    assert seen.count(b"".join(keys[::-1]), 12).tolist() == [1] * 300 + [2] * 300


def test_a_key_of_zeros_is_a_key() -> None:
    seen = Occurrences()
    assert seen.count(bytes(24), 12).tolist() == [0, 1]
    assert seen.count(bytes(12), 12).tolist() == [2]


@pytest.mark.slow
def test_a_row_costs_at_most_30_bytes_also_while_the_table_grows() -> None:
    """A table that doubles, or is copied to grow, has 38 to 60; a row that is repeated costs no more."""
    rng, batch = np.random.default_rng(0), 4096
    tracemalloc.start()
    try:
        seen = Occurrences()
        before = tracemalloc.get_traced_memory()[0]
        for done in range(1, 61):
            keys = rng.bytes(12 * batch)
            seen.count(keys, 12)
            seen.count(keys, 12)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert (
                done < 20 or peak < 30 * done * batch + 2_500_000
            )  # of a batch, and of what is moved at once
    finally:
        tracemalloc.stop()


def test_a_list_with_more_rows_than_a_table_may_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occurrences, "GROWTH", float(1 << 32))
    with pytest.raises(
        VlpipeError, match=r"at most 3,006,477,107 distinct rows; split it into several lists"
    ):
        Occurrences(1).count(digests(list(range(100))), 32)
