"""Sets of texts held as hashes: they answer as a Python set does, for any text, and also where quick hashes collide."""

import random

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.parquet import text_sets
from vlpipe.pipeline.parquet.text_sets import (
    DIGEST,
    TextSet,
    from_hex,
    hashed,
    is_among,
    sets_from_table,
    sets_to_table,
    to_hex,
)


def some_texts(num: int) -> list[str]:
    draw = random.Random(1)
    return ["".join(draw.choices("ab\x00é\U0001f600", k=draw.randrange(40))) for _ in range(num)]


def texts_with_nulls(num: int) -> list[str | None]:
    draw = random.Random(2)
    return [None if draw.random() < 0.1 else one for one in some_texts(num)]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("collide", [False, True])
def test_a_column_is_looked_up_as_in_a_set(
    kind: pa.DataType, collide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if collide:  # all texts of one length have one quick hash
        monkeypatch.setattr(text_sets, "_MIX", np.uint64(0))
        monkeypatch.setattr(text_sets, "_LENGTH", np.uint64(1 << 40))
    values = texts_with_nulls(600)
    known = set(some_texts(600)[::3])
    found = TextSet.of("id", [*known, *known])
    column = pa.chunked_array([pa.array(values[:100]), pa.array(values[100:]).slice(7)]).cast(kind)
    asked = values[:100] + values[107:]
    places = found.find(column)
    assert (places >= 0).tolist() == [one is not None and one in known for one in asked]
    assert len(set(places[places >= 0])) == len({one for one in asked if one in known})
    assert len(found) == len(known)


def test_texts_that_no_column_can_hold() -> None:
    assert TextSet.of("id", ["\ud800", "b"]).known(["\ud800", "a", "b"]) == {"\ud800", "b"}
    assert TextSet.of("id", []).known(["a"]) == set()
    assert TextSet("id").find(pa.array(["a"])).tolist() == [-1]


def test_sets_are_joined_and_kept_in_a_file() -> None:
    """A digest may end in zeros, which numpy leaves out when it shows one."""
    several = [f"{n}" for n in range(2000)]
    both = TextSet.of("id", several[:1200]) | TextSet.of("id", several[1000:])
    assert len(both) == 2000
    assert any(digest.endswith(b"\x00") for digest in (hashed("id", one) for one in several))
    back = sets_from_table(sets_to_table(both, TextSet.of("url", ["a"]), TextSet("host")))
    assert back.keys() == {"id", "url"}
    assert back["id"].find(pa.array(several)).tolist() == both.find(pa.array(several)).tolist()
    digests = np.sort(both.digests)
    assert (from_hex(pa.chunked_array([to_hex(digests)])) == digests).all()
    assert is_among(digests, [hashed("id", "7"), hashed("id", "x"), b""]).tolist() == [True, False, False]


@pytest.mark.parametrize("bad", ["", "0" * 63, "0" * 62 + " 0", "g" * 64, "é" * 32])
def test_what_is_no_hash_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"digits|hexadecimal|ascii"):
        from_hex(pa.chunked_array([pa.array(["0" * 64, bad])]))
    assert from_hex(pa.chunked_array([], pa.string())).dtype == DIGEST


TYPES = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
    pa.dictionary(pa.int32(), pa.string()),
]  # fmt: skip


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_column_of_any_type_of_string_is_looked_up(kind: pa.DataType) -> None:
    known = TextSet.of("id", ["a", "bb", "x" * 50])
    column = pa.array(["a", None, "q", "x" * 50]).cast(kind)
    assert known.mask(column).tolist() == [True, False, False, True]
    assert known.mask(pa.chunked_array([column.slice(1), column.slice(0, 1)])).tolist() == [
        False,
        False,
        True,
        True,
    ]
