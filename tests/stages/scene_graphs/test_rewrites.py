from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.scene_graphs.parse import GRAPHS, KINDS, SceneGraphs
from vlpipe.stages.scene_graphs.rewrites import Rewrites, replaced
from vlpipe.stages.scene_graphs.words import SceneWords, read_words, thin

TEXTS_OF_ROWS = [
    ["a red circle on a sofa", "a disc and an orange cat"],
    ["a big blue ring under a small table"],
    ["the ring is blue"],
    ["a yellow apple near a tiny disc"],
]
SAME = [["circle", "disc"], ["small", "tiny"]]
CLASSES = [["red", "blue", "orange", "yellow"], ["big", "small", "tiny"]]


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    entries = [[text(one, "web") for one in texts] for texts in TEXTS_OF_ROWS]
    table = pa.table({"id": [f"r{k}" for k in range(len(entries))], "texts": pa.array(entries, TEXTS)})
    return run_map(SceneGraphs(), table).table


@pytest.fixture(scope="module")
def words(rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> File:
    folder = tmp_path_factory.mktemp("words")
    out = run_gather(SceneWords(at_least=1), [dataset(folder / "in", rows, shard_rows=3)], folder)
    assert {row["name"]: row["value"] for row in out.table.to_pylist()} == {
        "objects": 7,
        "attributes": 7,
        "relations": 3,
    }
    return File(path=str(out.artifacts))


def test_words_by_kind(words: File) -> None:
    table = pq.read_table(Path(words.path) / "words.parquet").to_pylist()
    counts = {(row["kind"], row["words"]): row["count"] for row in table}
    assert counts["attributes", "blue"] == 2
    assert counts["objects", "disc"] == 2
    assert read_words(words.path)["relations"] == ["near", "on", "under"]
    with pytest.raises(VlpipeError, match=r"wanted words\.parquet of a step"):
        read_words(words.path + "/nothing")


def test_counts_are_thinned() -> None:
    counts = Counter({"a": 5, "b": 3, "c": 1, "d": 1})
    thin(counts, 2)
    assert counts == {"a": 4, "b": 2}


def test_one_node_is_another_of_its_kind_and_class(rows: pa.Table, words: File) -> None:
    stage = Rewrites(words=words, num=6, same=SAME, classes=CLASSES)
    out = run_map(stage, rows)
    by_kind = read_words(words.path)
    same = {word: set(group) for group in SAME for word in group}
    classes = {word: set(group) for group in CLASSES for word in group}
    num = Counter[str]()
    for texts, found in zip(TEXTS_OF_ROWS, out.table["rewrites"].to_pylist(), strict=True):
        said = set(" ".join(texts).split())
        for own, rewrites in zip(texts, found, strict=True):
            assert len({one["text"] for one in rewrites}) == len(rewrites) > 0
            for one in rewrites:
                num[one["kind"]] += 1
                pairs = [
                    (a, b)
                    for a, b in zip(own.split(), one["text"].split(), strict=True)
                    if a != b and {a, b} != {"a", "an"}
                ]
                ((old, new),) = pairs
                assert {old, new} <= set(by_kind[one["kind"]])
                assert not said & same.get(new, {new})
                assert classes.get(old) == classes.get(new)
    assert dict(num) == out.counts
    assert set(num) == set(KINDS)
    again = run_map(stage, rows.slice(1, 1)).table["rewrites"]
    assert again.to_pylist() == out.table["rewrites"].slice(1, 1).to_pylist()


def test_the_article_follows_the_word() -> None:
    assert replaced("A red cat", 2, 5, "orange") == "An orange cat"
    assert replaced("by an orange cat", 6, 12, "red") == "by a red cat"
    assert replaced("an orange", 3, 9, "apple") == "an apple"
    assert replaced("sofa red", 5, 8, "orange") == "sofa orange"


def test_texts_that_came_after_the_graphs_are_named(tmp_path: Path) -> None:
    texts = [[text("a dog", "web"), text("a cat", "web")]]
    graphs = [[{"objects": [], "attributes": [], "relations": []}]]
    rows = pa.table({"id": ["a"], "texts": pa.array(texts, TEXTS), "scene_graphs": pa.array(graphs, GRAPHS)})
    with pytest.raises(VlpipeError, match=r"has 1 scene graph\(s\) for 2 text\(s\)"):
        run_gather(SceneWords(), [dataset(tmp_path / "in", rows)], tmp_path / "out")
