"""What a person reads: golden where it is short; hostile text; conditions; half-done steps; who holds the lock."""

import os
import platform
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import Runs, vlpipe
from helpers import CHAIN

from vlpipe.pipeline.engine.locking import lock_file
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect import show
from vlpipe.pipeline.inspect.rows.where import parse_where
from vlpipe.pipeline.storage.checksummed_json import sealed, unsealed
from vlpipe.pipeline.storage.printable import cell, size, struct_text
from vlpipe.pipeline.storage.store import Store


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("show"), CHAIN)
    runs("run", "--local")
    return runs


def plain(lines: list[str]) -> list[str]:
    """Without keys, sizes and times."""
    text = "\n".join(lines)
    text = re.sub(r"-[0-9a-f]{8}\b", "", text)
    return re.sub(r"(size|seconds) +[\d.]+.*", r"\1", text).splitlines()


def test_a_step(chain: Runs) -> None:
    assert plain(vlpipe("show", chain.step("every"), "-n", "2")) == [
        "step        every",
        "use         toys:Every",
        "parameters  k: 4",
        "from        scale",
        "rows        5 of 20 rows in, in 4 shard(s)",
        "filtered    15 (not_kth 15)",
        "size",
        "seconds",
        "",
        "column   type    nulls  min  max  length",
        "id       string      0            3 to 4",
        "n        int64       0    0   16",
        "scaled   int64       0    0   48",
        "payload                                   heavy, in numbers",
        "",
        "id   n  scaled",
        "id0  0       0",
        "id4  4      12",
    ]


def test_a_shard_shows_sizes_instead_of_bytes_and_only_rows_that_meet_the_condition(chain: Runs) -> None:
    said = plain(vlpipe("show", chain.step("numbers") / "000001.parquet", "-n", "1", "--where", "n > 7"))
    assert said[:2] == ["shard    numbers/000001.parquet", "rows     6 of 6 rows in"]
    assert said[-2:] == ["id   n  payload", "id8  8  <10 bytes>"]


def test_rejects_of_a_step_and_of_a_shard(chain: Runs) -> None:
    said = vlpipe("show", chain.step("every") / "_rejects", "--where", "id = 'id5'")
    assert said[-1].split() == ["id5", "every", "filtered", "not_kth"]
    said = vlpipe("show", chain.step("every") / "_rejects/000003.parquet", "-n", "9")
    assert [line.split()[0] for line in said[-1:]] == ["id19"]


def test_any_parquet_file_and_a_finished_gather_step(chain: Runs, tmp_path: Path) -> None:
    texts = [{"text": "a [red] circle", "score": 0.25}, {"text": "x\x1b[2Jy", "score": None}]
    pq.write_table(pa.table({"id": ["a" * 64], "texts": [texts]}), tmp_path / "any.parquet")
    assert vlpipe("show", tmp_path / "any.parquet")[-4:] == [
        f"id     {'a' * 64}",
        "texts  text: a [red] circle, score: 0.25",
        "       text: x\\x1b[2Jy",
        "",
    ]
    said = vlpipe("show", chain.step("sum"))
    assert any(line.startswith("artifacts   sum.json, in ") for line in said)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("n >", "--where 'n >': Parser Error: syntax error at or near \")\""),
        (
            "m > 3 and n < 4",
            "--where 'm > 3 and n < 4': Binder Error: Referenced column \"m\" not found in FROM clause!",
        ),
        ("m = 3", "--where: there is no column 'm'; there are: id, n, scaled"),
        ("n = three", "--where: column 'n' is int64 and cannot be compared with 'three'"),
    ],
)
def test_conditions_that_make_no_sense(chain: Runs, where: str, error: str) -> None:
    assert vlpipe("show", chain.step("every"), "--where", where, code=1) == [error]


def test_any_sql_condition_in_the_order_of_the_rows(tmp_path: Path) -> None:
    texts = [[{"text": "a"}], None, [{"text": "b"}, {"text": "it's"}], []]
    table = pa.table({"id": ["a", "b b", "c", "d"], "texts": texts, "score": [0.5, 0.1, None, 0.9]})
    pq.write_table(table, tmp_path / "any.parquet")
    store = Store(str(tmp_path))

    def ids(where: str) -> list[str]:
        return [row["id"] for row in show.first_rows(store, ["any.parquet"], 9, where)]

    assert ids("len(texts) > 1 OR score > 0.6") == ["c", "d"]
    assert ids("score IS NULL") == ["c"]
    assert ids("score > 0.3") == ["a", "d"]
    assert ids("id = 'b b'") == ids('id = "b b"') == ["b b"]
    assert ids("texts[2].text = 'it''s'") == ["c"]
    assert ids("id = 'a' AND score = 0.5") == ["a"]
    with pytest.raises(VlpipeError, match="file system operations are disabled"):
        ids("id IN (SELECT content FROM read_text('/etc/hostname'))")


def test_one_comparison_needs_no_duckdb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    schema = pa.schema([("n", pa.int64())])
    table = pa.table({"n": [1, 2, 3]}, schema)
    assert parse_where("n >= 2", schema)(table)["n"].to_pylist() == [2, 3]
    with pytest.raises(VlpipeError, match=r"need DuckDB: pip install 'vlpipe\[inspect\]'"):
        parse_where("n >= 2 AND n < 3", schema)


def test_paths_that_are_not_there(chain: Runs, tmp_path: Path) -> None:
    (error,) = vlpipe("show", chain.step("every") / "000007.parquet", code=1)
    assert error.startswith(
        f"there is no file or folder {chain.step('every')}/000007.parquet; did you mean '00000"
    )
    (error,) = vlpipe("show", chain.root, code=1)
    assert error.startswith(f"{chain.root} is not a step's folder; this root has add-")


def test_damaged_records_are_one_sentence(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    (runs.step("every") / "manifest.json").write_text("{")
    (error,) = vlpipe("show", runs.step("every"), code=1)
    assert f"{runs.step('every')}/manifest.json is damaged" in error
    assert error.endswith("`vlpipe verify` lists all damage and what to do")


def test_status_of_half_a_run(tmp_path: Path) -> None:
    """A shard counts only when it was made from what is above it now."""
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local", "--until", "every")
    step = runs.step("every")
    (step / "manifest.json").unlink()
    (step / "_receipts/000002.json").unlink()
    path = step / "_receipts/000001.json"
    path.write_bytes(sealed({**unsealed(path.read_bytes()), "input_digest": "of another shard"}))
    states = {line.split()[0]: line for line in runs("status")}
    assert "2 of 4 shards" in states["every"]
    assert "not_kth 6" in states["every"]
    assert states["sum"].endswith("step 'every' runs")
    assert states["toy:"].startswith("toy: 3 of 7 steps are done")


def test_seconds_of_a_step_without_a_shard(tmp_path: Path) -> None:
    runs = Runs(tmp_path, 'steps:\n  a: {use: "toys:OnlyArtifact", seconds: 0.3}\n')
    runs("run", "--local")
    (line,) = (line for line in runs("status") if line.startswith("a "))
    assert float(re.search(r"(\d+\.\d) +\d+ B", line)[1]) >= 0.3
    (line,) = (line for line in vlpipe("show", runs.step("a")) if line.startswith("seconds"))
    assert float(line.split()[1].rstrip(",")) >= 0.3


def test_status_says_who_is_at_work(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local", "--until", "numbers")
    assert not any("heartbeat" in line for line in runs("status"))
    with locked(Store(str(runs.root))):
        assert runs("status")[-1].startswith(
            f"a run is in progress: process {os.getpid()} on {platform.node()}"
        )
    file = lock_file.newest(Store(str(runs.root)))
    beat = time.time() - 5
    killed = replace(file.record, started="long ago", beat=beat, ended=False)
    (runs.root / file.rel).write_bytes(killed.to_bytes())
    last = runs("status")[-1]
    found = re.fullmatch(
        r"a run was killed: .*, last heartbeat (\d+) s ago; `vlpipe run` continues from here", last
    )
    assert found, last
    assert 5 <= int(found[1]) <= time.time() - beat + 0.5  # it is rounded


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (b"\x00" * 1234, "<1,234 bytes>"),
        (0.333333333, "0.333333"),
        (12345678, "12345678"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("line\nline", "line\\nline"),
        ("\u00e9t\u00e9", "\u00e9t\u00e9"),
        ("x" * 300, "x" * 197 + "..."),
        ([1, 2, 3, 4, 5], "[1, 2, 3, 4, ... 5 values]"),
        ([{"text": "a", "score": None}], "[(text: a)]"),
    ],
)
def test_values_on_a_terminal(value: object, text: str) -> None:
    assert cell(value) == text


def test_digests_in_structs_are_cut() -> None:
    assert struct_text({"text": "a", "model": "ab" * 32}) == "text: a, model: abababab"


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 1000, 1_250_000, 3e9, 4e12)] == [
        *("0 B", "999 B", "1.0 kB", "1.2 MB", "3.0 GB", "4.0 TB")
    ]


def test_a_step_without_digits_is_the_one_of_the_last_run(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    (first,) = runs.root.glob("every-*")
    runs("run", "--local", "--set", "scale.by=5")
    (last,) = {*runs.root.glob("every-*")} - {first}
    for rest in ("", "/000000.parquet", "/_rejects", "/_rejects/000000.parquet"):
        assert vlpipe("show", f"{runs.root}/every{rest}") == vlpipe("show", f"{last}{rest}")
    said = vlpipe("show", runs.root / "evry", code=1)
    assert said[-1].startswith(f"there is no file or folder {runs.root}/evry; there are: add-")


def test_a_root_shows_the_steps_of_its_last_run_also_if_that_run_made_nothing(tmp_path: Path) -> None:
    """Parameters there and back: the third run finds all rows of the first."""
    runs = Runs(tmp_path, CHAIN)
    shown = []
    for sets in ((), ("--set", "scale.by=9"), ()):
        runs("run", "--local", *sets)
        shown.append((runs.root / "_steps.json").read_bytes())
    assert shown[0] == shown[2] != shown[1]
    before = (runs.root / "_steps.json").stat().st_mtime_ns
    assert "nothing to do" in runs("run", "--local")[0]
    assert (runs.root / "_steps.json").stat().st_mtime_ns == before
