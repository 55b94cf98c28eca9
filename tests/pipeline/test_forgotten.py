"""`forgotten.parquet`: what is in it is obeyed, and a file that cannot be read stops everything."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.engine.records.forgotten import SCHEMA, add_forgotten, hashed, read_forgotten
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.opted_out import read_hashes
from vlpipe.pipeline.inspect.verify.root import root_problems
from vlpipe.pipeline.parquet.text_sets import TextSet
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.web.opted_out import OptedOut


def added(store: Store, **values: list[str]) -> None:
    add_forgotten(store, **{kind: TextSet.of(kind, several).digests for kind, several in values.items()})


def test_rows_are_obeyed_by_id_url_and_domain_and_the_file_is_the_same_in_any_order(tmp_path: Path) -> None:
    ids = [f"row {n}" for n in range(300)]  # of some the hash ends in zeros
    one, two = Store(str(tmp_path / "one")), Store(str(tmp_path / "two"))
    added(one, id=ids, url=["a.test/x"], domain=["b.test"])
    added(two, domain=["b.test"], id=ids[::2])
    added(two, id=ids[::-1], url=["a.test/x"])
    assert one.read_bytes("forgotten.parquet") == two.read_bytes("forgotten.parquet")
    found = read_forgotten(one)
    assert all(found.has("id", id_) for id_ in ids)
    rows = pa.table(
        {
            "id": ["row 7", "r", "s", "t", "u"],
            "url": [None, "HTTP://A.test:80/x#y", "http://www.b.test/", "http://nob.test/", None],
        }
    )
    left, rejects = found.split(rows)
    assert left["id"].to_pylist() == ["t", "u"]
    assert [r.id for r in rejects] == [hashed("id", id_) for id_ in ("row 7", "r", "s")]
    kept = pq.read_table(tmp_path / "one" / "forgotten.parquet")
    assert kept.schema.remove_metadata() == SCHEMA
    assert kept.num_rows == 302


GOOD = {"kind": ["id"], "hash": ["0" * 64]}
DAMAGED = {
    "garbage": b"nothing of the kind",
    "empty": b"",
    "other columns": {"kind": ["id"], "sha": ["0" * 64]},
    "numbers": {"kind": ["id"], "hash": [1]},
    "short hash": {"kind": ["id"], "hash": ["0" * 63]},
    "no hash": {"kind": ["id", "id"], "hash": ["0" * 64, None]},
    "unknown kind": {"kind": ["ids"], "hash": ["0" * 64]},
    "no kind": {"kind": pa.array([None], pa.string()), "hash": ["0" * 64]},
}


def damage(path: Path, how: bytes | dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(how, bytes):
        path.write_bytes(how)
    else:
        pq.write_table(pa.table(how), path)


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_named_and_obeying_nothing_is_no_way_out(tmp_path: Path, how: str) -> None:
    damage(tmp_path / "forgotten.parquet", DAMAGED[how])
    with pytest.raises(
        VlpipeError, match=r"forgotten\.parquet cannot be read .*: it records what was forgotten"
    ):
        read_forgotten(Store(str(tmp_path)))
    with pytest.raises(VlpipeError, match="Restore a copy of it"):
        added(Store(str(tmp_path)), id=["a"])


def test_a_page_that_is_damaged_is_no_empty_list(tmp_path: Path) -> None:
    added(Store(str(tmp_path)), id=[f"{n}" for n in range(5000)])
    path = tmp_path / "forgotten.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    with pytest.raises(VlpipeError, match="cannot be read"):
        read_forgotten(Store(str(tmp_path)))


@pytest.mark.parametrize("how", ["garbage", "empty", "other columns", "short hash"])
def test_who_said_no_is_not_asked_again_because_of_damage(tmp_path: Path, how: str) -> None:
    wrong = DAMAGED[how]
    if how == "short hash":
        when = pa.array([0], pa.timestamp("ms", "UTC"))
        wrong = {"hash": ["0" * 63], "evidence": ["noai"], "first_seen": when}
    damage(tmp_path / "opted_out" / "000000.parquet", wrong)
    for read in (lambda: OptedOut(Store(str(tmp_path))).load(), lambda: read_hashes(Store(str(tmp_path)))):
        with pytest.raises(
            VlpipeError, match=r"opted_out/000000\.parquet cannot be read .*must not be fetched"
        ):
            read()


def test_a_column_of_another_type_is_named_with_both_types(tmp_path: Path) -> None:
    """The names of the columns are right, so names alone would not say what is wrong."""
    rows = {"hash": ["0" * 64], "evidence": ["noai"], "first_seen": [0]}
    damage(tmp_path / "opted_out" / "000000.parquet", rows)
    damage(tmp_path / "forgotten.parquet", {"kind": ["id"], "hash": [1]})
    root = Store(str(tmp_path))
    said = {problem.path: problem.text for problem in root_problems(root)}
    opted_out = r"first_seen int64, not hash string, evidence string, first_seen timestamp\[ms, tz=UTC\]"
    assert re.search(opted_out, said["opted_out/000000.parquet"])
    assert (
        said["forgotten.parquet"] == "its columns are kind string, hash int64, not kind string, hash string"
    )
    with pytest.raises(VlpipeError, match=opted_out):
        read_hashes(root)


def test_hashes_take_32_bytes_each(tmp_path: Path) -> None:
    added(Store(str(tmp_path)), id=[f"{n}" for n in range(1000)])
    (hashes,) = read_forgotten(Store(str(tmp_path))).hashes.values()
    assert hashes.nbytes == 32_000
    assert (np.sort(hashes) == hashes).all()
