from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.filter.balance import CountEntries, DrawEntries, draw, matcher, read_entries

ENTRIES = ["dog", "cat", "black dog", "dog black", "New York", "a", "U.S", "C++", "né", "whale"]
CASES = [
    "a black dog.",
    "dog,cat",
    "dogs and cats",
    "new york New York!",
    "dog\tblack\ncat",
    "",
    "the U.S",
    "né?",
    "(dog)",
]


def reference(value: str, entries: list[str]) -> list[int]:
    """MetaCLIP's substring matching: spaces around these signs, then ` entry ` in ` text `."""
    spaced = f" {value} "
    for sign in [",", ".", ";", ":", "?", "!", "`"]:
        spaced = spaced.replace(sign, f" {sign} ")
    for space in ["\t", "\n", "\r"]:
        spaced = spaced.replace(space, " ")
    return [k for k, entry in enumerate(entries) if f" {entry} " in spaced]


def test_matching_is_metaclips() -> None:
    rng = random.Random(0)
    words = [
        "dog",
        "cat",
        "black",
        "New",
        "York",
        "a",
        "né",
        "dogs",
        ",",
        ".",
        " ",
        "  ",
        "!",
        "C++",
        "U.S",
        "`",
    ]
    made = [
        "".join(f"{w} " if rng.random() < 0.7 else w for w in rng.choices(words, k=8)) for _ in range(500)
    ]
    match = matcher(ENTRIES)
    for value in [*CASES, *made]:
        assert match(value) == reference(value, ENTRIES), value
    assert [ENTRIES[k] for k in match("a black dog.")] == ["dog", "black dog", "a"]
    assert match("dogs and cats") == []


def rows_of(values: list[str], seed: int = 0) -> pa.Table:
    entries = [[text(value, "web")] for value in values]
    return pa.table({"id": [f"r{seed}-{i}" for i in range(len(values))], "texts": pa.array(entries, TEXTS)})


def balanced(folder: Path, table: pa.Table, **more: int) -> pa.Table:
    folder.mkdir(exist_ok=True)
    (folder / "entries.txt").write_text("\n".join(ENTRIES))
    stage = CountEntries(entries=File(path=str(folder / "entries.txt")))
    run_gather(stage, [dataset(folder / "in", table, shard_rows=333)], folder)
    counts = File(path=str(folder / "artifacts/counts.parquet"), digest=str(folder))
    return run_map(DrawEntries(counts=counts, **more), table).table


def test_each_text_counts_once_per_entry(tmp_path: Path) -> None:
    table = rows_of(["dog dog dog", "dog cat", "whale song", "nothing"])
    out = balanced(tmp_path, table, t=1)
    made = run_gather(
        CountEntries(entries=File(path=str(tmp_path / "entries.txt"))),
        [dataset(tmp_path / "again", table)],
        tmp_path,
    )
    assert made.table.to_pydict() == {"entry": ["dog", "cat", "whale"], "count": [2, 1, 1]}
    assert out["num_entries"].to_pylist() == [[1], [2], [1], [0]]
    assert out["drawn"].to_pylist()[2:] == [[True], [False]]  # t / count is 1; nothing matched


def test_common_entries_are_thinned_out_to_about_t(tmp_path: Path) -> None:
    values = ["dog"] * 3000 + ["cat"] * 600 + ["whale"] * 50 + ["dog whale"] * 20
    table = rows_of(values)
    out = balanced(tmp_path, table, t=300)
    kept = Counter(v for v, d in zip(values, out["drawn"].to_pylist(), strict=True) if d[0])
    assert kept["whale"] == 50
    assert kept["dog whale"] == 20  # the rare entry draws for the text
    expected = {"dog": 3000 * 300 / 3020, "cat": 300.0}
    for name, mean in expected.items():
        assert abs(kept[name] - mean) < 5 * mean**0.5
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    again = balanced(tmp_path / "again", shuffled, t=300)
    assert dict(zip(again["id"].to_pylist(), again["drawn"].to_pylist(), strict=True)) == dict(
        zip(out["id"].to_pylist(), out["drawn"].to_pylist(), strict=True)
    )
    other = balanced(tmp_path / "seed", table, t=300, seed=1)
    assert other["drawn"].to_pylist() != out["drawn"].to_pylist()


def test_a_draw_is_uniform_and_its_own() -> None:
    draws = np.array([draw(0, f"r{i}", "dog") for i in range(20_000)])
    assert 0 <= draws.min() < draws.max() < 1
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] - 2000).max() < 5 * 2000**0.5
    assert draw(0, "a", "b") == draw(0, "a", "b") != draw(0, "a", "c")


def test_lists_of_entries(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('["New York", "dog", "dog", " "]')
    assert read_entries(str(tmp_path / "e.json")) == ["New York", "dog"]
    (tmp_path / "e.txt").write_bytes(
        "red\u2028car\r\nbig\x85 dog\rcat".encode()
    )  # only these ends end a line
    assert read_entries(str(tmp_path / "e.txt")) == ["red\u2028car", "big\x85 dog", "cat"]
    (tmp_path / "e.txt").write_text("\n \n")
    with pytest.raises(
        VlpipeError, match="has no entry; wanted a text file with one entry per line, or a JSON list of texts"
    ):
        read_entries(str(tmp_path / "e.txt"))
