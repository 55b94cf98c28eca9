"""An image under many different texts: it is counted, none of its texts is merged, and a rule rejects it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather, run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import Rule
from vlpipe.stages.dedup.apply import DropDuplicates
from vlpipe.stages.dedup.exact import ExactDuplicates
from vlpipe.stages.dedup.redecide import Decide
from vlpipe.stages.filter.rules import Rules

Row = tuple[str, str, str, list[str]]  # id, content, url, texts
RULE = Rule(id="placeholder", column="image_texts", op="<=", value=10)


def table(rows: list[Row]) -> pa.Table:
    return pa.table(
        {
            "id": [row[0] for row in rows],
            "sha256": [hashlib.sha256(row[1].encode()).hexdigest() for row in rows],
            "url": [row[2] for row in rows],
            "texts": pa.array([[text(t, "web") for t in row[3]] for row in rows], TEXTS),
        }
    )


def decided(folder: Path, rows: pa.Table, shard_rows: int = 64, **more: Any) -> GatherOutput:
    data = [dataset(folder, rows, shard_rows=shard_rows)]
    found = run_gather(ExactDuplicates(), data, folder / "twins")
    stage = Decide(edges=File(path=str(found.artifacts)), merge_texts=True, **more)
    return run_gather(stage, data, folder / "decide")


def applied(got: GatherOutput, rows: pa.Table) -> pa.Table:
    file = File(path=str(got.artifacts / "decisions.parquet"), digest=str(got.artifacts))
    return run_map(DropDuplicates(decisions=file, merge_texts=True), rows).table


def listing(num: int, content: str = "no picture", host: str = "shop.test") -> list[Row]:
    return [
        (f"{content}-{n:03d}", content, f"http://{host}/{n}.png", [f"listing number {n} a blue sofa"])
        for n in range(num)
    ]


def photo(num: int = 3) -> list[Row]:
    """A real photo on as many hosts, under two texts that differ by more than case and spaces."""
    texts = ["a red kite", "A  Red kite", "a kite over the sea"]
    return [(f"photo-{n}", "photo", f"http://{n}.test/k.jpg", [texts[n % 3]]) for n in range(num)]


def test_a_placeholder_is_rejected_by_a_rule_and_gets_no_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table([*listing(200), *photo()])
    got = decided(tmp_path, rows)
    kept = applied(got, rows)
    assert kept.select(["id", "image_rows", "image_hosts", "image_texts"]).to_pylist() == [
        {"id": kept["id"][0].as_py(), "image_rows": 200, "image_hosts": 1, "image_texts": 200},
        {"id": kept["id"][1].as_py(), "image_rows": 3, "image_hosts": 3, "image_texts": 2},
    ]
    assert [len(each) for each in kept["texts"].to_pylist()] == [1, 3]
    out = run_map(Rules(rules=(RULE,)), kept)
    assert [(r.why, r.detail) for r in out.rejects] == [("placeholder", "image_texts 200, wanted <= 10")]
    assert out.table["id"].to_pylist() == [kept["id"][1].as_py()]
    said = capsys.readouterr().out
    assert (
        "\n1 image(s) under more than 10 different texts, placeholders: none of their texts was merged;"
        in said
    )
    assert "chains of pairs" not in said


@pytest.mark.parametrize(("num", "merged"), [(10, 10), (11, 1)])
def test_the_limit_is_a_number_of_texts(tmp_path: Path, num: int, merged: int) -> None:
    rows = table(listing(num))
    assert [len(each) for each in applied(decided(tmp_path, rows), rows)["texts"].to_pylist()] == [merged]


def test_many_copies_under_one_text_are_no_placeholder(tmp_path: Path) -> None:
    """So are captions that come in fives: five texts of one row are one set."""
    five = [f"caption {n}" for n in range(5)]
    rows = table(
        [(f"{n}", "photo", f"http://h{n}.test/a", ["a kite"]) for n in range(50)]
        + [(f"c{n}", "coco", "http://c.test/a", [f"{n} {t}" for t in five]) for n in range(3)]
    )
    kept = applied(decided(tmp_path, rows), rows).sort_by("image_rows").to_pylist()
    assert [(r["image_rows"], r["image_hosts"], r["image_texts"]) for r in kept] == [(3, 1, 3), (50, 50, 1)]
    assert [len(r["texts"]) for r in kept] == [15, 1]
    assert run_map(Rules(rules=(RULE,)), applied(decided(tmp_path / "2", rows), rows)).rejects == []


def test_a_second_dedup_keeps_the_counts_of_the_first(tmp_path: Path) -> None:
    rows = table(listing(40))
    kept = applied(decided(tmp_path, rows), rows)
    again = decided(tmp_path / "2", kept).table.to_pylist()
    assert [(r["image_rows"], r["image_hosts"], r["image_texts"]) for r in again] == [(40, 1, 40)]


def test_counts_do_not_depend_on_order_or_shards(tmp_path: Path) -> None:
    rows = table([*listing(30), *photo(7), *listing(12, "logo", "logos.test")])
    want = decided(tmp_path / "0", rows).table.sort_by("id")
    shuffled = rows.take([(n * 20) % rows.num_rows for n in range(rows.num_rows)])
    assert sorted(shuffled["id"].to_pylist()) == sorted(rows["id"].to_pylist())
    assert decided(tmp_path / "1", shuffled, shard_rows=5).table.sort_by("id").equals(want)


def test_rows_without_url_or_texts_have_no_counts_of_them(tmp_path: Path) -> None:
    rows = table(listing(3)).drop_columns(["url", "texts"])
    (found,) = {
        (r["image_rows"], r["image_hosts"], r["image_texts"])
        for r in run_gather(ExactDuplicates(), [dataset(tmp_path, rows)], tmp_path / "s").table.to_pylist()
    }
    assert found == (3, None, None)
