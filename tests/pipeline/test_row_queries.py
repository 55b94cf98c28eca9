"""Pages, conditions, order, histograms and thresholds over a step's rows, compared with plain loops over the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import Runs
from look_at import PAGES, picture

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.on_disk import read_step
from vlpipe.pipeline.inspect.rows.cache import ByteCache
from vlpipe.pipeline.inspect.rows.columns import leaves
from vlpipe.pipeline.inspect.rows.conditions import Condition, Queries, parse_condition
from vlpipe.pipeline.inspect.rows.heavy import HeavyReader
from vlpipe.pipeline.inspect.rows.histograms import histogram, moved
from vlpipe.pipeline.inspect.rows.table import RowTable, open_files, open_rows
from vlpipe.pipeline.storage.store import Store

Row = dict[str, Any]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> RowTable:
    runs = Runs(tmp_path_factory.mktemp("rows"), PAGES)
    runs("run", "--local", "--until", "scored")
    store, folder = Store(str(runs.root)), runs.step("scored").name
    return open_rows(store, folder, read_step(store, folder).receipts)


@pytest.fixture(scope="module")
def rows(table: RowTable) -> list[Row]:
    found = table.rows(range(table.num_rows))
    assert len(found) == 51
    assert len(table.shards) == 4
    return found


def test_a_page_is_a_slice_in_any_order(table: RowTable, rows: list[Row]) -> None:
    assert table.rows(range(10, 20)) == rows[10:20]
    assert table.rows([41, 0, 7, 7]) == [rows[k] for k in (41, 0, 7, 7)]
    assert table.rows([3], ["id"]) == [{"id": rows[3]["id"]}]
    assert table.rows([]) == []
    with pytest.raises(VlpipeError, match="there is no row 51; the step has 51 rows"):
        table.rows([51])


def test_rows_are_found_by_id(table: RowTable, rows: list[Row]) -> None:
    wanted = [rows[40]["id"], rows[2]["id"]]
    assert table.find([*wanted, "nobody"]) == {wanted[0]: 40, wanted[1]: 2}
    assert table.find(["x"], "nothing") == {}


def test_a_heavy_value_is_read_from_the_step_that_made_it(table: RowTable, rows: list[Row]) -> None:
    heavy = HeavyReader(max_bytes=4_000)  # less than a page: nothing is kept, all is found
    for k in (0, 41, 20):
        assert heavy.value(table, k, "image") == picture(int(rows[k]["id"][3:]))
    with pytest.raises(VlpipeError, match="no heavy column 'texts'; it has image"):
        heavy.value(table, 0, "texts")


def texts(test: Callable[[Row], bool]) -> Callable[[Row], bool]:
    return lambda row: any(test(text) for text in row["texts"])


CASES: list[tuple[list[str], Callable[[Row], bool]]] = [
    (["width<20"], lambda r: r["width"] < 20),
    (["width>=20", "width!=31"], lambda r: r["width"] >= 20 and r["width"] != 31),
    (["id=row0000000000004"], lambda r: r["id"] == "row0000000000004"),
    (["url~X.TEST/1"], lambda r: "x.test/1" in r["url"]),
    (["texts.score<0.2"], texts(lambda t: t["score"] < np.float32(0.2))),
    (
        ["texts.source=web", "texts.score<0.2"],
        texts(lambda t: t["source"] == "web" and t["score"] < np.float32(0.2)),
    ),
    (["texts.source!=web"], texts(lambda t: t["source"] != "web")),
    (["texts.kept=false", "texts.source=synth"], texts(lambda t: not t["kept"] and t["source"] == "synth")),
    (["texts.why=null"], texts(lambda t: t["why"] is None)),
    (["texts.why!=null", "width>30"], lambda r: r["width"] > 30 and any(t["why"] for t in r["texts"])),
    (["texts.text~SCRIPT"], texts(lambda t: "script" in t["text"].lower())),
    (
        ["texts.text~made up 1", "texts.score>=0.5"],
        texts(lambda t: "made up 1" in t["text"] and t["score"] >= 0.5),
    ),
    (["texts.text=made up 12"], texts(lambda t: t["text"] == "made up 12")),
    (["texts.score.max<0.6"], lambda r: max(t["score"] for t in r["texts"]) < np.float32(0.6)),
    (
        ["texts.score.max>=0.6", "texts.source=web"],
        lambda r: max(t["score"] for t in r["texts"]) >= np.float32(0.6),
    ),
    (["width=null"], lambda r: False),
    (["texts.source=nobody"], lambda r: False),
]


NOTHING = (["width=null"], ["texts.source=nobody"])


@pytest.mark.parametrize(("conditions", "test"), CASES, ids=[" ".join(c) for c, _ in CASES])
def test_conditions(
    table: RowTable, rows: list[Row], conditions: list[str], test: Callable[[Row], bool]
) -> None:
    found = Queries().matching(table, [parse_condition(text) for text in conditions])
    assert found is not None
    assert found.tolist() == [k for k, row in enumerate(rows) if test(row)]
    assert len(found) or conditions in NOTHING


def test_conditions_of_one_list_hold_for_one_element(table: RowTable, rows: list[Row]) -> None:
    both = [Condition("texts.source", "=", "web"), Condition("texts.text", "~", "made up")]
    found = Queries().matching(table, both)  # a synthetic text says `made up`, the web one does not
    assert found is not None
    assert len(found) == 0


def test_sql_and_order(table: RowTable, rows: list[Row]) -> None:
    queries = Queries()
    found = queries.matching(
        table, [parse_condition("width<40")], "len(texts) = 2 AND width % 2 = 0", "-width"
    )
    assert found is not None
    wanted = [k for k, row in enumerate(rows) if row["width"] < 40 and row["width"] % 2 == 0]
    assert found.tolist() == sorted(wanted, key=lambda k: -rows[k]["width"])
    by_score = queries.matching(table, [], order="texts.score")
    assert by_score is not None
    best = [max(t["score"] for t in rows[k]["texts"]) for k in by_score.tolist()]
    assert best == sorted(best)
    assert queries.matching(table, []) is None
    with pytest.raises(VlpipeError, match="nonsense"):
        queries.matching(table, [], "nonsense(1)")


@pytest.mark.parametrize("text", ["", "width", "= 3", "<3", "wi dth = 3"])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(VlpipeError, match="wanted COLUMN, one of"):
        parse_condition(text)


def test_a_histogram_counts_every_text_once(table: RowTable, rows: list[Row]) -> None:
    queries = Queries()
    found = histogram(queries, table, "texts.score", 20, "texts.source")
    assert [panel.name for panel in found.panels] == ["synth", "web"]
    assert (found.edges[0], found.edges[-1]) == (0.0, 1.0)
    for panel in found.panels:
        mine = [t for row in rows for t in row["texts"] if t["source"] == panel.name]
        assert panel.num == len(mine)
        assert sum(panel.counts["true"]) == sum(t["kept"] for t in mine)
        assert sum(panel.counts["false"]) == sum(not t["kept"] for t in mine)
    assert sum(found.rows) == len(rows)
    only = histogram(queries, table, "texts.score", 20, "", [parse_condition("texts.source=web")])
    assert sum(map(sum, only.panels[0].counts.values())) == len(rows)
    wide = histogram(queries, table, "width", 4)
    assert (wide.edges[0], wide.edges[-1]) == (min(r["width"] for r in rows), max(r["width"] for r in rows))


@pytest.mark.parametrize("at", [0.0, 0.3, 0.55, 0.95, 2.0])
def test_a_moved_threshold(table: RowTable, rows: list[Row], at: float) -> None:
    found = moved(Queries(), table, "texts.score", at)
    cut = np.float32(at)
    assert found.values_below == sum(t["score"] < cut for row in rows for t in row["texts"])
    assert found.rows_below == sum(all(t["score"] < cut for t in row["texts"]) for row in rows)
    assert (found.num_values, found.num_rows) == (102, 51)


def test_nulls_empty_lists_and_odd_values(tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("score", pa.float64()), ("names", pa.list_(pa.string()))]))
    lists: list[Any] = [
        None,
        [],
        [{"score": None}],
        [{"score": math.nan}, {"score": 0.5}],
        [{"score": math.inf}],
    ]
    made = pa.table(
        {
            "n": pa.array([1, None, 3, 4, 5], pa.int64()),
            "t": pa.array(["a", None, "b", "a", ""]),
            "ok": pa.array([True, None, False, True, None]),
            "list": pa.array(lists, kind),
            "vector": pa.array([[1.0, 2.0]] * 5, pa.list_(pa.float32(), 2)),
        }
    )
    pq.write_table(made, tmp_path / "odd.parquet", row_group_size=2)
    table = open_files(Store(str(tmp_path)), ["odd.parquet"])
    assert [leaf.path for leaf in leaves(table.light)] == ["n", "t", "ok", "list.score"]
    queries = Queries()

    def at(*conditions: str) -> list[int]:
        found = queries.matching(table, [parse_condition(c) for c in conditions])
        assert found is not None
        return found.tolist()

    assert at("n=null") == [1]
    assert at("n!=null", "n>3") == [3, 4]
    assert at("t=a") == [0, 3]
    assert at("t=null") == [1]
    assert at("ok=true") == [0, 3]
    assert at("ok=null") == [1, 4]
    assert at("list.score>0") == [3, 4]
    assert at("list.score.max<1") == [3]
    assert at("list.score=none") == [0, 1]
    assert moved(queries, table, "list.score", 0.7).num_values == 1
    assert sum(histogram(queries, table, "list.score", 5).rows) == 1


def test_a_step_without_rows(tmp_path: Path) -> None:
    table = open_rows(Store(str(tmp_path)), "none-01234567", [])
    assert (table.num_rows, table.rows([]), table.find(["x"])) == (0, [], {})


def test_a_cache_stays_within_its_bytes() -> None:
    cache, loaded = ByteCache(100), list[int]()

    def load(n: int) -> int:
        loaded.append(n)
        return n

    for n in (1, 2, 3, 1, 4, 4, 9):
        assert cache.get(n, lambda n=n: load(n), lambda n: 200 if n == 9 else 40) == n
        assert cache.num_bytes <= 100
    assert loaded == [1, 2, 3, 1, 4, 9]
    assert cache.get(9, lambda: load(9), lambda _: 200) == 9
    assert loaded[-2:] == [9, 9]  # larger than the cache alone: never kept
