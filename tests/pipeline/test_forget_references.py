"""What a forget takes out of rows that stay: ids in columns that their step declared, and nothing that looks like one."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import Runs, vlpipe
from ref_toys import GIVEN, LINKED, ROWS

from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.forget.references import references_in, without_ids
from vlpipe.pipeline.parquet.text_sets import TextSet
from vlpipe.pipeline.shard import ShardWriter, ref, reference_columns


class Forgets(Runs):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, LINKED)
        self("run", "--local")

    def forget(self, *ids: str) -> None:
        entries = self.folder / "entries.txt"
        entries.write_text("\n".join(f"id:{one}" for one in ids))
        self("forget", entries, "--yes")

    def rows(self, name: str) -> dict[str, dict[str, Any]]:
        paths = sorted(self.step(name).glob("0*.parquet"))
        return {row["id"]: row for path in paths for row in pq.read_table(path).to_pylist()}


@pytest.fixture
def runs(tmp_path: Path) -> Forgets:
    return Forgets(tmp_path)


@pytest.mark.parametrize("finished", [True, False])
def test_only_declared_columns_of_rows_that_stay_are_scrubbed(runs: Forgets, finished: bool) -> None:
    """`text`, `license` and `tags` are words: that one is "12" says nothing of row 12."""
    if not finished:
        (runs.step("linked") / "manifest.json").unlink()
    runs.forget("12")
    left = runs.rows("linked")
    assert left.keys() == {"11", "13", "my cat.jpg", "14"}
    for row in ROWS:
        if row["id"] in left:
            now = left[row["id"]]
            assert {name: now[name] for name in row} == row
            assert now["witness"] is None
            assert now["near"] == ["14", "my cat.jpg"]
            assert now["two"] == ["14", None], "of a list of fixed length the place stays"
            assert now["place"] == {"x": 1, "of": None}
            assert now["given"] == [{"text": "12", "from": ["13"]}, {"text": "y", "from": None}]
    runs.forget("my cat.jpg")
    assert runs.rows("linked")["13"]["near"] == ["14"]
    runs("run", "--local")
    assert vlpipe("verify", runs.root)[-1].endswith("all match their records")


def test_of_artifacts_pairs_go_and_members_of_groups_go(runs: Forgets) -> None:
    runs.forget("12")
    artifacts = runs.step("groups") / "artifacts"
    assert pq.read_table(artifacts / "pairs.parquet").to_pylist() == [{"a": "13", "b": "14", "kind": "12"}]
    assert pq.read_table(artifacts / "groups.parquet").to_pylist() == [
        {"members": ["11"], "label": "12"},
        {"members": ["13"], "label": "12"},
        {"members": None, "label": "x"},
    ]
    assert runs("run", "--local")[0].startswith("linked: all 6 steps are done, nothing to do")
    assert vlpipe("verify", runs.root)[-1].endswith("all match their records")


def test_what_was_copied_from_a_row_goes_with_it(runs: Forgets) -> None:
    """The second image of a pair, the text of a neighbour: without its id it would stay for ever."""
    runs.forget("12")
    cat = {"text": "a cat", "of": "my cat.jpg"}
    wanted = {"id": "13+13", "other": "13", "text": "12 dogs"}
    wanted |= {"all": [], "near": [cat], "each": [None, []], "one": None}
    assert runs.rows("copied") == {"13+13": wanted}
    assert runs.rows("below") == {"13+13": {"id": "13+13", "text": "12 dogs"}}, "which does not say of what"
    assert b"a dog" not in b"".join(path.read_bytes() for path in runs.step("copied").glob("0*.parquet"))
    runs("run", "--local")
    assert vlpipe("verify", runs.root)[-1].endswith("all match their records")


def test_in_sentences_a_short_id_is_one_where_it_is_said_to_be(runs: Forgets) -> None:
    runs.forget("12", "my cat.jpg")
    (reject,) = pq.read_table(runs.step("linked") / "_rejects" / "000001.parquet").to_pylist()
    assert reject["detail"] == (
        "duplicate of a forgotten row, similarity 12; after 12 tries; twin of a forgotten row, as 13"
    )
    said = (runs.step("groups") / "_log" / "said.txt").read_text()
    assert said == "12 rows, the largest group is that of a forgotten row: 3 of 12\n"
    logs = [
        json.loads(line)
        for path in sorted((runs.step("linked") / "_log").glob("0*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert [line for line in logs if "id" in line] == [
        {"id": id_, "status": "12", "said": "12 of 12"} for id_ in ("11", "13", "14")
    ]


def test_an_id_of_any_length_goes_where_its_row_is(runs: Forgets) -> None:
    runs.forget("14")
    assert "14" not in runs.rows("short")
    assert {name: runs.rows("short")["13"][name] for name in ROWS[2]} == ROWS[2]


@pytest.mark.parametrize("dtype", [pa.int64(), pa.list_(pa.binary()), pa.struct([("a", pa.string())])])
def test_a_reference_is_text_or_lists_of_text(dtype: pa.DataType) -> None:
    with pytest.raises(SchemaError, match="reference column 'near': wanted string or lists of strings, got"):
        ref("near", dtype)


def test_a_declaration_changes_no_byte_of_a_shard(tmp_path: Path) -> None:
    """Not in a struct either: it is in the step's records."""
    declared = pa.schema([("id", pa.string()), ref("near", pa.list_(pa.string())), pa.field("given", GIVEN)])
    given = pa.list_(pa.struct([("text", pa.string()), ("from", pa.list_(pa.string()))]))
    plain = pa.schema([("id", pa.string()), ("near", pa.list_(pa.string())), ("given", given)])
    row = {"id": "a", "near": ["b"], "given": [{"text": "t", "from": ["c"]}]}
    for name, schema in (("declared", declared), ("plain", plain)):
        with ShardWriter(str(tmp_path / name), schema) as writer:
            writer.write(pa.Table.from_pylist([row], plain))
    assert reference_columns(declared) == ("near", "given.from")
    assert (tmp_path / "declared").read_bytes() == (tmp_path / "plain").read_bytes()


def test_lists_of_any_kind_and_slices_of_columns() -> None:
    """Values after a slice, nulls and empty lists keep their places."""
    ids = TextSet.of("id", ["x", "y"])
    kinds = [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.list_(pa.string()))]
    values: list[Any] = [["q"], None, ["x", "a"], [], ["y"], [None, "b", "x"]]
    for kind in kinds:
        nested = pa.types.is_list(kind.value_type)
        column = pa.array([v if v is None or not nested else [v, None] for v in values], kind)
        table = pa.table({"near": column}).slice(1)
        (found,) = references_in(table.schema, ["near"])
        left = without_ids(table, found, ids)["near"].to_pylist()
        wanted = [None, ["a"], [], [], [None, "b"]]
        assert left == [v if v is None or not nested else [v, None] for v in wanted]
        assert without_ids(table, found, TextSet.of("id", ["z"])) is table
