"""A row's whole history: fetched when, duplicate of whom, trained on by whom; texts, decisions, children; unclear ids."""

import json
import re
from pathlib import Path
from typing import IO, ClassVar

import pytest
from cli_helpers import Runs
from forget_toys import CHAIN, content, row_id, url

from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.inspect.why import history
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

TEXT = """
name: pages
steps:
  pages: {use: "verb_toys:Pages", num_rows: 10, shard_rows: 4}
  numbered: {use: "toys:Numbers", num_rows: 4, shard_rows: 2}
  decide: {use: "verb_toys:Decide", from: pages}
  judge: {use: "verb_toys:Judge", from: pages}
  split: {use: "verb_toys:Split", from: judge, last: page00000004-b}
  losses: {use: "verb_toys:Losses", from: split}
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("why"), TEXT)
    runs("run", "--local")
    return runs


def without_keys(lines: list[str]) -> list[str]:
    return [re.sub(r"-[0-9a-f]{8}/", "/", line) for line in lines]


def test_a_row_from_its_url_to_its_children(pages: Runs) -> None:
    assert without_keys(pages("why", "http://x.test/5.jpg")) == [
        "row page00000002-b",
        "pages.rows  pages.rows/000001.parquet",
        "    + url: http://x.test/5.jpg",
        "    texts: + text: text 5",
        "pages       pages/000001.parquet, unchanged",
        "decide      decide/000000.parquet",
        "    + keep: false",
        "    + witness: page00000002-a (http://x.test/4.jpg)",
        "judge       judge/000001.parquet",
        "    texts: ~ 'text 5': score null -> 0.75, kept null -> true",
        "    texts: + text: made up",
        "    - url",
        "    by verb_toys:Judge: threshold 0.5",
        "split       split/000001.parquet",
        "    2 row(s) made from it: page00000002-b/x, page00000002-b/y",
    ]


class Counting(Store):
    """Notes which files are opened."""

    opened: ClassVar[list[str]] = []

    def open(self, rel: str) -> IO[bytes]:
        self.opened.append(rel)
        return super().open(rel)


def test_the_urls_of_all_twins_are_looked_up_in_one_pass(tmp_path: Path) -> None:
    text = """
steps:
  pages: {use: "verb_toys:Pages", num_rows: 12, shard_rows: 6}
  twins: {use: "look_toys:Twins", from: pages}
"""
    runs = Runs(tmp_path, text)
    runs("run", "--local")
    store = Counting(str(runs.root))
    steps = plan(Workflow.load(str(runs.file), root=str(runs.root)), store)
    Counting.opened.clear()
    told = history(steps, store, "page00000005-b").events[-1].lines[0]
    assert [f"http://x.test/{n}.jpg)" in told for n in range(6, 10)] == [True] * 4
    listed = [
        name for name in Counting.opened if name.startswith("pages.rows-") and name.endswith("0.parquet")
    ]
    assert len(listed) <= 3  # to find the row, to follow it, to look up the others


def test_a_child_begins_with_the_history_of_its_parent(pages: Runs) -> None:
    said = without_keys(pages("why", "page00000001-a/y"))
    assert said[0] == "row page00000001-a/y"
    assert "    + url: http://x.test/2.jpg" in said
    at = said.index("split       split/000000.parquet")
    assert said[at + 1 :] == [
        "    texts: + text: text 2, score: 0.75, kept: true",
        "    texts: + text: made up",
        "    + parent: page00000001-a",
        "losses      read it, from split/000000.parquet",
    ]


def test_a_row_that_was_dropped_ends_there(pages: Runs) -> None:
    assert pages("why", "page00000004-b")[-1] == "split       dropped, filtered: no_scene"


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (
            "page00000002",
            "'page00000002' matches 2 rows: page00000002-a, page00000002-b; give one id, or more characters of it",
        ),
        (
            "http://x.test/8.jpg",
            "'http://x.test/8.jpg' matches 2 rows: page00000004-a, page00000004-b; give one id, or more characters of it",
        ),
        (
            "page000",
            "no row has the id or url 'page000'; wanted a whole id, its first 8 or more characters, or a url",
        ),
    ],
)
def test_what_is_not_clear_is_an_error(pages: Runs, row: str, error: str) -> None:
    assert pages("why", row, code=1) == [error]


def test_short_ids_are_found_whole_and_in_their_own_source(pages: Runs) -> None:
    said = without_keys(pages("why", "id3"))
    assert said == [
        "row id3",
        "numbered.rows  numbered.rows/000001.parquet",
        "    + n: 3",
        "numbered       numbered/000001.parquet",
        "    + payload: <10 bytes>",
    ]


def test_before_anything_ran(tmp_path: Path) -> None:
    runs = Runs(tmp_path, TEXT)
    (error,) = runs("why", "id3", code=1)
    assert error == f"nothing has run in {runs.root} yet; run `vlpipe run` first"


def test_a_half_done_workflow_says_what_has_not_run(tmp_path: Path) -> None:
    runs = Runs(tmp_path, TEXT)
    runs("run", "--local", "--until", "judge")
    said = runs("why", "page00000002-b")
    assert "decide      not run yet" in said
    assert said[-1] == "split       not run yet"
    assert not any(line.startswith("losses") for line in said)


def test_a_row_in_no_file_points_to_verify(tmp_path: Path) -> None:
    runs = Runs(tmp_path, TEXT)
    runs("run", "--local", "--until", "judge")
    shards = sorted(runs.step("judge").glob("0*.parquet"))
    shards[1].write_bytes(shards[0].read_bytes())
    assert "and not in its rejects: a file is damaged" in runs("why", "page00000002-b")[-1]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("twins")
    (folder / "num.txt").write_text("20")
    runs = Runs(folder, CHAIN.replace("LIST", str(folder / "num.txt")))
    runs("run", "--local")
    return runs


def test_the_whole_story_of_a_url(twins: Runs) -> None:
    said = without_keys(twins("why", url(2)))
    model = re.compile(r"\b[0-9a-f]{8}\b")
    assert [model.sub("DIGEST", line) for line in said] == [
        f"row {row_id(2)}",
        "pages.rows  pages.rows/000000.parquet",
        f"    + url: {url(2)}",
        "pages       pages/000000.parquet",
        "    texts: + text: words of 2.",
        f"    + sha256: {content(2)}",
        "    + image: <73 bytes>",
        "    log: attempts: 3",
        "twins       twins/000000.parquet",
        "    + keep: true",
        "    gained: + text: words of 3.",
        f"    + donors: [[{row_id(3)} ({url(3)})]]",
        "unique      unique/000000.parquet",
        "    texts: + text: words of 3.",
        f"    + donors: [null, [{row_id(3)} ({url(3)})]]",
        "    + before: [words of 2., words of 3.]",
        "    log: took: words of 3.",
        "    by forget_toys:Unique: decisions of twins",
        "model       read it, from unique/000000.parquet",
        "    in the training set with its 6 columns",
        "    1 of 10 rows of unique, 10 in all",
        "    it made the model DIGEST",
        "scored      scored/000000.parquet",
        "    + size: 73",
        "    + model: DIGEST of tuned",
        "    - url",
        "    by forget_toys:Scored: threshold 0.5, model of tuned",
    ]


def test_a_twin_is_named_by_its_url_and_is_in_no_training_set(twins: Runs) -> None:
    said = without_keys(twins("why", row_id(3)))
    twin = f"{row_id(2)} ({url(2)})"
    assert f"    + witness: {twin}" in said
    assert said[-3:] == [
        f"unique      dropped, filtered: twin (duplicate of {twin}, similarity 0.9)",
        "    by forget_toys:Unique: decisions of twins",
        "model       not in its training set: unique dropped it (twin)",
    ]


def test_a_row_that_was_never_fetched_says_how_often_it_was_tried(twins: Runs) -> None:
    said = without_keys(twins("why", url(4)))
    assert said[-3:] == [
        f"pages       dropped, fault: dead ({url(4)})",
        "    log: attempts: 2",
        "model       not in its training set: pages dropped it (dead)",
    ]


def test_the_same_for_tools(twins: Runs) -> None:
    found = json.loads("".join(twins("why", url(3), "--json")))
    assert found["id"] == row_id(3)
    assert [(e["step"], e["what"]) for e in found["events"]] == [
        ("pages.rows", "new"),
        ("pages", "changed"),
        ("twins", "changed"),
        ("unique", "dropped"),
        ("model", "absent"),
    ]
