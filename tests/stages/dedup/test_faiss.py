from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.dedup import search
from vlpipe.stages.dedup.faiss import FaissDuplicates, packages_problem, threads


def table(vectors: np.ndarray, ids: list[str] | None = None, pixels: list[int] | None = None) -> pa.Table:
    num, width = vectors.shape
    ids = ids or [f"r{k:05d}" for k in range(num)]
    kind = pa.list_(pa.float32(), width)
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), width)
    schema = pa.schema(
        [("id", pa.string()), ("width", pa.int32()), ("height", pa.int32()), heavy("embedding", kind)]
    )
    return pa.table([ids, pixels or [1] * num, [1] * num, values], schema=schema)


def run(folder: Path, rows: pa.Table, *, shard_rows: int = 1000, **parameters: object):
    got = run_gather(
        FaissDuplicates(**parameters), [dataset(folder, rows, shard_rows=shard_rows)], folder / "step"
    )
    edges = pq.read_table(got.artifacts / "edges.parquet")
    assert pq.read_table(got.artifacts / "decisions.parquet").equals(got.table)
    return {row["id"]: row for row in got.table.to_pylist()}, edges


def angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def planted(num: int, width: int, num_copies: int, cosines: float, seed: int = 0) -> np.ndarray:
    """`num` rows in 40 loose clusters, then copies of the first rows at exactly this cosine."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, width))[rng.integers(0, 40, num)] + 1.2 * rng.normal(size=(num, width))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    away = rng.normal(size=(num_copies, width))
    away -= (away * x[:num_copies]).sum(1, keepdims=True) * x[:num_copies]
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    copies = cosines * x[:num_copies] + np.sqrt(1 - cosines**2) * away
    return np.concatenate([x, copies])


def test_the_threshold_counts_as_a_twin(tmp_path: Path) -> None:
    rows = table(np.array([[1.0, 0.0], [0.6, 0.8]]))  # cosine 0.6
    assert not run(tmp_path / "at", rows, threshold=0.6)[0]["r00001"]["keep"]
    assert run(tmp_path / "above", rows, threshold=0.600001)[0]["r00001"]["keep"]


def test_equal_vectors_are_twins_at_threshold_1(tmp_path: Path) -> None:
    x = planted(20, 64, 0, 1.0)
    got, edges = run(tmp_path, table(np.concatenate([x, x])), threshold=1.0)
    assert [row["witness"] for row in got.values()][20:] == [f"r{k:05d}" for k in range(20)]
    assert edges["similarity"].to_pylist() == [1.0] * 20


def test_a_chain_keeps_both_ends_unless_the_middle_is_best(tmp_path: Path) -> None:
    chain = angles(0, 20, 40)  # cos 20 = 0.94, cos 40 = 0.77
    got, edges = run(tmp_path / "ends", table(chain, pixels=[3, 2, 1]), threshold=0.9)
    assert [row["keep"] for row in got.values()] == [True, False, True]
    assert got["r00001"]["why"] == "near_duplicate"
    assert got["r00001"]["similarity"] == pytest.approx(np.cos(np.radians(20)), abs=1e-6)
    assert edges.select(["a", "b"]).to_pydict() == {"a": ["r00000", "r00001"], "b": ["r00001", "r00002"]}
    got, _ = run(tmp_path / "middle", table(chain, pixels=[1, 3, 2]), threshold=0.9)
    assert [row["keep"] for row in got.values()] == [False, True, False]
    assert got["r00000"]["witness"] == got["r00002"]["witness"] == "r00001"


@pytest.mark.parametrize("exact_below", [50_000, 0])
def test_pairs_equal_those_of_the_full_matrix(tmp_path: Path, exact_below: int) -> None:
    x = planted(700, 32, 100, 0.93).astype(np.float32)
    similar = x.astype(np.float64) @ x.astype(np.float64).T
    want = {tuple(p) for p in np.argwhere(np.triu(similar >= 0.9, k=1)).tolist()}
    _, edges = run(tmp_path, table(x), threshold=0.9, exact_below=exact_below)
    found = {
        (int(a[1:]), int(b[1:])) for a, b in zip(*edges.select(["a", "b"]).to_pydict().values(), strict=True)
    }
    assert found <= want
    assert len(found) >= (1.0 if exact_below else 0.99) * len(want)
    assert len(want) >= 100


@pytest.mark.slow
def test_recall_of_planted_pairs_across_clusters(tmp_path: Path) -> None:
    x = planted(6000, 64, 1000, 0.90)
    got, _ = run(tmp_path, table(x), threshold=0.89, exact_below=1000)
    assert sum(not row["keep"] for row in got.values()) >= 999


@pytest.mark.parametrize("exact_below", [50_000, 0])
def test_the_order_of_rows_and_the_size_of_shards_change_no_decision(
    tmp_path: Path, exact_below: int
) -> None:
    rows = table(planted(500, 16, 60, 0.95), pixels=[k % 5 for k in range(560)])
    want, want_edges = run(tmp_path / "0", rows, threshold=0.9, exact_below=exact_below)
    assert any(not row["keep"] for row in want.values())
    for attempt in (1, 2):
        shuffled = rows.take(np.random.default_rng(attempt).permutation(560))
        got, edges = run(
            tmp_path / str(attempt), shuffled, threshold=0.9, exact_below=exact_below, shard_rows=91 * attempt
        )
        assert got == want
        assert edges.equals(want_edges)


def test_artifacts_have_the_same_bytes_again(tmp_path: Path) -> None:
    rows = table(planted(300, 16, 30, 0.95))
    for name in "ab":
        run(tmp_path / name, rows, threshold=0.9, exact_below=0)
    for file in ("decisions.parquet", "edges.parquet"):
        first, second = (tmp_path / name / "step/artifacts" / file for name in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_faiss_gets_its_threads_back() -> None:
    import faiss
    import torch

    before = faiss.omp_get_max_threads()
    with threads() as module:
        assert module.omp_get_max_threads() == torch.get_num_threads()
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("bad", [np.nan, 0.0, 3.0])
def test_a_vector_that_is_not_of_length_1_is_named(tmp_path: Path, bad: float) -> None:
    x = angles(0, 20, 40)
    x[1] *= bad
    with pytest.raises(VlpipeError, match=r"embedding of 1 row\(s\) is not of norm 1 \(first: id r00001\)"):
        run(tmp_path, table(x), threshold=0.9)


def test_a_missing_embedding_is_named(tmp_path: Path) -> None:
    rows = table(angles(0, 20))
    kind = rows.schema.field("embedding")
    rows = rows.set_column(3, kind, pa.array([[1.0, 0.0], None], kind.type))
    with pytest.raises(VlpipeError, match=r"embedding of 1 row\(s\) is null \(first: id r00001\)"):
        run(tmp_path, rows, threshold=0.9)


def test_a_collapsed_encoder_is_an_error_not_a_memory_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MIN_PAIR_LIMIT", 1000)
    monkeypatch.setattr(search, "PAIRS_PER_ROW", 3)
    with pytest.raises(
        VlpipeError, match="more than 1,000 pairs of 100 distinct rows reach the threshold: the encoder has"
    ):
        run(tmp_path, table(angles(*np.linspace(0, 1, 100))), threshold=0.9)


def test_no_rows(tmp_path: Path) -> None:
    data = dataset(tmp_path, table(angles(0)).schema.empty_table())
    assert run_gather(FaissDuplicates(threshold=0.9), [data], tmp_path / "step").table.num_rows == 0


def test_schema_wants_a_fixed_size_list() -> None:
    with pytest.raises(
        SchemaError, match=r"dedup\.faiss reads column 'embedding', which its input does not have"
    ):
        FaissDuplicates(threshold=0.9).schema(pa.schema([("id", pa.string())]))
    lists = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float64()))])
    with pytest.raises(SchemaError, match=r"\(fixed_size_list<float>\), but it is list<"):
        FaissDuplicates(threshold=0.9).schema(lists)


def test_without_faiss_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(VlpipeError, match=r"pip install 'vlpipe\[cpu\]', or 'vlpipe\[gpu\]'"), threads():
        pass


def test_both_packages_at_once_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages_problem() is None
    for name in ("faiss_cpu", "faiss_gpu"):
        (tmp_path / f"{name}-1.15.1.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.15.1\n"
        (tmp_path / f"{name}-1.15.1.dist-info/METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    with (
        pytest.raises(VlpipeError, match=r"faiss-cpu and faiss-gpu are both installed.*exclude each other"),
        threads(),
    ):
        pass
    assert "pip uninstall -y faiss-cpu faiss-gpu" in FaissDuplicates(threshold=0.9).preflight()[0]


def test_near_copies_of_photos_are_found_by_a_plain_embedding(tmp_path: Path, photos: list[Path]) -> None:
    from PIL import Image

    def embed(image: Image.Image) -> np.ndarray:
        x = np.asarray(image.convert("L").resize((16, 16))).astype(np.float64).ravel()
        x -= x.mean()
        return x / np.linalg.norm(x)

    originals = [Image.open(path).convert("RGB") for path in photos[:150]]
    cropped = [image.crop((4, 4, image.width - 4, image.height - 4)) for image in originals]
    rows = table(np.stack([embed(image) for image in originals + cropped]))
    got, _ = run(tmp_path, rows, threshold=0.85, exact_below=0)
    removed = {i: row["witness"] for i, row in got.items() if not row["keep"]}
    right = sum(int(i[1:]) - int(w[1:]) == 150 for i, w in removed.items())
    assert right >= 0.9 * 150
    assert right >= 0.95 * len(removed)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "step/artifacts").iterdir())}


@pytest.mark.slow
def test_one_thread_or_two_the_same_bytes(tmp_path: Path) -> None:
    import torch

    rows = table(planted(3000, 64, 300, 0.93))
    before = torch.get_num_threads()
    try:
        for num in (1, 2):
            torch.set_num_threads(num)
            run(tmp_path / str(num), rows, threshold=0.9, exact_below=0, shard_rows=700)
            assert torch.get_num_threads() == num
    finally:
        torch.set_num_threads(before)
    assert files(tmp_path / "1") == files(tmp_path / "2")


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_kill_after_any_part_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(tmp_path, table(planted(400, 16, 60, 0.95)), shard_rows=100)
    stage = FaissDuplicates(threshold=0.9, exact_below=0, clusters=6)
    run_gather(stage, [data], tmp_path / "whole/step")
    parts = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "whole/step/work").iterdir()}
    assert set(parts) == {
        *("vectors.npy", "sketches.npy", "centroids.npy", "members.npy"),
        *(f"pairs-{k:06d}.npy" for k in range(len(parts) - 4)),
    }
    assert len(parts) >= 10
    writing, made = Store.writing, []

    @contextmanager
    def dies_after_one(self: Store, rel: str, **options: bool) -> Iterator[str]:
        with writing(self, rel, **options) as part:
            yield part
        made.append(rel)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "writing", dies_after_one)
        for _ in parts:
            with pytest.raises(Killed):
                run_gather(stage, [data], tmp_path / "killed/step")
    assert sorted(made) == sorted(parts), "each attempt made the next part, and none twice"
    run_gather(stage, [data], tmp_path / "killed/step")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def edge_set(edges: pa.Table) -> set[tuple[str, str]]:
    return set(zip(edges["a"].to_pylist(), edges["b"].to_pylist(), strict=True))


@pytest.mark.parametrize("exact_below", [50_000, 0])
def test_copies_of_one_vector_cost_one_edge_each(tmp_path: Path, exact_below: int) -> None:
    x = np.repeat(angles(0, 10, 90), [300, 300, 1], axis=0)
    got, edges = run(tmp_path, table(x), threshold=0.9, exact_below=exact_below)
    assert edges.num_rows == 299 + 299 + 1
    assert edges["kind"].value_counts().to_pylist() == [
        {"values": "same_vector", "counts": 598},
        {"values": "near", "counts": 1},
    ]
    assert [i for i, row in got.items() if row["keep"]] == ["r00000", "r00600"]


@pytest.mark.parametrize(("num", "clusters"), [(1, None), (1, 3), (3, 100)])
def test_there_are_never_more_clusters_than_rows(tmp_path: Path, num: int, clusters: int | None) -> None:
    rows = table(np.repeat(angles(*np.arange(num) * 90.0), 5, axis=0))
    got, _ = run(tmp_path, rows, threshold=0.9, exact_below=0, clusters=clusters)
    assert sum(row["keep"] for row in got.values()) == num


def test_a_heap_of_near_copies_does_not_stop_the_clustering(tmp_path: Path) -> None:
    x = np.concatenate([angles(*np.linspace(0, 1e-3, 500)), angles(*np.linspace(10, 350, 35))])
    got, edges = run(tmp_path, table(x), threshold=0.999, exact_below=0, clusters=8)
    assert sum(row["keep"] for row in got.values()) == 36
    assert edges.num_rows == 500 * 499 // 2


def earlier_set(path: Path, rows: pa.Table) -> File:
    path.mkdir()
    pq.write_table(rows.select(["id", "embedding"]), path / "000000.parquet")
    return File(path=str(path))


@pytest.mark.parametrize("exact_below", [50_000, 0])
def test_new_rows_are_compared_with_an_earlier_set_and_among_themselves(
    tmp_path: Path, exact_below: int
) -> None:
    rows = table(planted(700, 32, 100, 0.95))
    _, everything = run(tmp_path / "all", rows, threshold=0.9, exact_below=exact_below)
    old, new = rows.slice(0, 500), rows.slice(500)
    earlier = {f"r{k:05d}" for k in range(500)}
    got, edges = run(
        tmp_path / "new",
        new,
        threshold=0.9,
        exact_below=exact_below,
        against=earlier_set(tmp_path / "old", old),
    )
    assert list(got) == new["id"].to_pylist(), "an earlier row gets no decision"
    want = {pair for pair in edge_set(everything) if not set(pair) <= earlier}
    assert {tuple(sorted(pair)) for pair in edge_set(edges)} == want
    assert [row["b"] in earlier for row in edges.to_pylist()] == edges["earlier"].to_pylist()
    dropped = {i for i, row in got.items() if not row["keep"]}
    assert dropped >= {f"r{k:05d}" for k in range(700, 800)} - earlier
    assert any(got[i]["witness"] in earlier for i in dropped)
    assert all(got[i]["witness"] in earlier or got[got[i]["witness"]]["keep"] for i in dropped)


def test_a_new_row_with_the_vector_of_an_earlier_one_goes(tmp_path: Path) -> None:
    old = earlier_set(tmp_path / "old", table(angles(0, 0, 90), ["z1", "z2", "z3"]))
    got, edges = run(tmp_path, table(angles(0, 0, 20, 50), ["a", "b", "c", "d"]), threshold=0.9, against=old)
    assert {i: row["witness"] for i, row in got.items()} == {"a": "z1", "b": "z1", "c": "z1", "d": None}
    assert edge_set(edges) == {("a", "z1"), ("b", "z1"), ("c", "z1")}


def test_what_is_wrong_with_an_earlier_set_is_said(tmp_path: Path) -> None:
    rows = table(angles(0, 20))
    with pytest.raises(VlpipeError, match=r"2 row\(s\) of this step have the id of a row in the earlier set"):
        run(tmp_path / "1", rows, threshold=0.9, against=earlier_set(tmp_path / "same", rows))
    with pytest.raises(
        VlpipeError, match=r"against: there is no Parquet file at .*none; wanted a Parquet file, or a folder"
    ):
        run(tmp_path / "2", rows, threshold=0.9, against=File(path=str(tmp_path / "none")))
    wide = earlier_set(tmp_path / "wide", table(np.eye(3), ["x", "y", "z"]))
    with pytest.raises(
        VlpipeError, match=r"have different widths, \[2, 3\]; compute all of them with one model"
    ):
        run(tmp_path / "3", rows, threshold=0.9, against=wide)
