"""What a row took from forgotten ones: which words go, from where, and what must not go with them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forget_toys import DONORS, ENTRIES

from vlpipe.pipeline.forget.copied_texts import find_taken, take_back
from vlpipe.pipeline.forget.rows import ForgottenRows
from vlpipe.pipeline.parquet.text_sets import TextSet
from vlpipe.pipeline.storage.store import Store

GONE = TextSet.of("id", ["d", "e"])
EMPTIED = {"text": "", "kept": False, "why": "forgotten"}


def entry(text: str, kept: bool | None = None, why: str | None = None) -> dict[str, Any]:
    return {"text": text, "kept": kept, "why": why}


def table(**columns: Any) -> pa.Table:
    kinds = {"texts": ENTRIES, "donors": DONORS, "words": pa.list_(pa.string())}
    return pa.table({name: pa.array(values, kinds.get(name)) for name, values in columns.items()})


def found(tmp_path: Path, *tables: pa.Table) -> dict[str, frozenset[str]]:
    for n, one in enumerate(tables):
        pq.write_table(one, tmp_path / f"{n}.parquet")
    return dict(find_taken(Store(str(tmp_path)), [f"{n}.parquet" for n in range(len(tables))], GONE))


def test_words_are_those_of_entries_all_of_whose_donors_go(tmp_path: Path) -> None:
    """As they are in any file; words that the row has from itself or from one that stays are not among them."""
    texts = [
        [entry("own"), entry("of d"), entry("of d and f"), entry("own")],
        [entry("of e")],
        [entry("mine")],
    ]
    rows = table(
        id=["a", "b", "c"], texts=texts, donors=[[None, ["d"], ["d", "f"], ["e"]], [["e", "d"]], None]
    )
    below = table(id=["a"], texts=[[entry("own"), entry("cleaned")]], donors=[[None, ["d"]]])
    no_id = table(texts=texts[:1], donors=[[None, ["d"], None, None]])
    other = pa.table({"id": ["a"], "donors": ["d"]})  # a column of that name, and nothing else
    assert found(tmp_path, rows, below, no_id, other) == {
        "a": {"of d", "cleaned"},
        "b": {"of e"},
    }


def test_entries_are_emptied_in_their_place_and_lists_beside_them_keep_theirs() -> None:
    texts = [[entry("own"), entry("of d", kept=True), entry("of d and f")], [entry("of d")]]
    rows = table(
        id=["a", "b"],
        texts=texts,
        donors=[[None, ["d"], ["d", "f"]], None],
        words=[["of d", "of d", "x"], None],
    )
    left = take_back(rows, GONE, {"a": frozenset({"of d"})}).to_pylist()
    assert left[0]["texts"] == [entry("own"), EMPTIED, entry("of d and f")]
    assert left[0]["donors"] == [None, [], ["f"]]
    assert left[0]["words"] == ["of d", "", "x"], "the first is beside an entry of its own"
    assert left[1] == rows.to_pylist()[1], "it said so itself"
    assert take_back(rows.slice(1), GONE, {"a": frozenset({"of d"})}).equals(rows.slice(1))


def test_done_twice_it_is_what_it_was_after_the_first_time() -> None:
    rows = table(id=["a"], texts=[[entry("own"), entry("of d")]], donors=[[None, ["d"]]])
    taken = {"a": frozenset({"of d"})}
    once = take_back(rows, GONE, taken)
    assert take_back(once, GONE, taken) is once
    assert once is not rows


def test_where_the_donors_are_not_told_the_words_go(tmp_path: Path) -> None:
    """A file that lost the column; a file with one line per text; a log; a reject."""
    gone = ForgottenRows(GONE, taken={"a": frozenset({"of d", "PNG"})})
    rows = table(
        id=["a", "b"], texts=[[entry("own"), entry("of d")], [entry("of d")]], words=[["of d"], ["of d"]]
    )
    left = gone.scrub(rows, ())[0].to_pylist()
    assert [row["texts"] for row in left] == [[entry("own"), EMPTIED], [entry("of d")]]
    assert [row["words"] for row in left] == [[""], ["of d"]]
    lines = gone.scrub(pa.table({"id": ["a", "a", "b"], "text": ["of d", "own", "of d"]}), ())[0]
    assert lines["text"].to_pylist() == ["", "own", "of d"]
    assert gone.in_lines([{"id": id_, "dropped": "of d"} for id_ in "ab"]) == [True, False]
    assert gone.scrub_texts(["decided about 'of d'"], ["a"]) == ["decided about 'a forgotten text'"]


@pytest.mark.parametrize("name", ["format", "url", "id"])
def test_a_caption_that_says_png_leaves_a_format_alone(name: str) -> None:
    rows = pa.table({"id": ["PNG"], "format": ["PNG"], "url": ["PNG"]})
    left = take_back(rows, GONE, {"PNG": frozenset({"PNG"})})
    assert left[name].to_pylist() == ["PNG"]
