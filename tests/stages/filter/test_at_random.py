"""The random filter keeps as many texts per source as the filter it replaces, chosen by their ids alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import encoder_of, scored
from vlpipe.stages.filter.at_random import AT_RANDOM, RandomCut, RandomFilter

Texts = dict[str, list[dict[str, Any]]]
Rows = Callable[..., pa.Table]


def judged(words: str, source: str, kept: bool, why: str = "not_matched") -> dict[str, Any]:
    return text(words, source, score=0.9 if kept else 0.1, kept=kept, why=None if kept else why)


def filtered(num_rows: int) -> Texts:
    """A human text, one or two web texts and a synthetic one per row; 30 % of web and 70 % of synthetic ones are kept."""
    rng = np.random.default_rng(0)
    return {
        f"r{n}": [
            text(f"human {n}", "human"),
            *(judged(f"web {n} {k}", "web", rng.random() < 0.3) for k in range(1 + n % 2)),
            judged(f"synth {n}", "synth", rng.random() < 0.7),
        ]
        for n in range(num_rows)
    }


def at_random(
    folder: Path, table: pa.Table, shard_rows: int = 37, **parameters: Any
) -> tuple[Texts, list[dict[str, Any]]]:
    """Returns the texts by row id, and the output rows of `RandomCut`."""
    cut = run_gather(RandomCut(**parameters), [dataset(folder / "in", table, shard_rows=shard_rows)], folder)
    stage = RandomFilter(cut=File(path=str(cut.artifacts / "cut.json")))
    parts = [run_map(stage, table.slice(at, shard_rows)).table for at in range(0, len(table), shard_rows)]
    out = pa.concat_tables(parts)
    assert out["id"].to_pylist() == table["id"].to_pylist()
    return dict(zip(out["id"].to_pylist(), out["texts"].to_pylist(), strict=True)), cut.table.to_pylist()


def kept(texts: Texts) -> Counter[str]:
    return Counter(t["source"] for ts in texts.values() for t in ts if t["kept"])


def test_it_keeps_exactly_as_many_of_each_source(tmp_path: Path, text_rows: Rows) -> None:
    before = filtered(400)
    after, counts = at_random(tmp_path, text_rows(before))
    wanted = kept(before)
    assert kept(after) == wanted
    assert counts == [
        {"source": "web", "num_kept": wanted["web"], "num_texts": 600},
        {"source": "synth", "num_kept": wanted["synth"], "num_texts": 400},
    ]
    both = [(a, b) for r in before for a, b in zip(before[r], after[r], strict=True)]
    assert all(a == b for a, b in both if a["source"] == "human")
    ours = [(a, b) for a, b in both if a["source"] != "human"]
    assert all(
        a | {"kept": None, "why": None, "score": None} == b | {"kept": None, "why": None} for a, b in ours
    )
    assert {(b["kept"], b["why"]) for _, b in ours} == {(True, None), (False, AT_RANDOM)}
    # The choice has nothing to do with the filter's: of the kept texts, as large a share was kept before as of all.
    for source, share in (("web", wanted["web"] / 600), ("synth", wanted["synth"] / 400)):
        chosen = [a["kept"] for a, b in ours if b["kept"] and b["source"] == source]
        assert np.mean(chosen) == pytest.approx(share, abs=3 * (share * (1 - share) / len(chosen)) ** 0.5)


def test_neither_shards_nor_order_matter_and_the_seed_does(tmp_path: Path, text_rows: Rows) -> None:
    table = text_rows(filtered(200))
    once, _ = at_random(tmp_path / "once", table)
    other = table.take(np.random.default_rng(1).permutation(200))
    assert at_random(tmp_path / "other", other, shard_rows=7)[0] == once
    again, _ = at_random(tmp_path / "seed", table, seed=1)
    assert kept(again) == kept(once)
    assert again != once


def test_it_draws_among_the_texts_that_the_filter_judged(tmp_path: Path, text_rows: Rows) -> None:
    empty, unseen = text("", "synth", kept=False, why="empty"), text("new", "synth")
    before = {
        "a": [judged("one", "web", True), empty],
        "b": [judged("two", "web", False), unseen],
        "c": [],
    }
    after, counts = at_random(tmp_path, text_rows(before))
    assert [row["num_texts"] for row in counts] == [2, 0]
    assert (after["a"][1], after["b"][1], after["c"]) == (empty, unseen, [])
    assert sorted(ts[0]["kept"] for ts in (after["a"], after["b"])) == [False, True]


@pytest.mark.parametrize(("num_kept", "num"), [(0, 5), (5, 5)])
def test_none_and_all(tmp_path: Path, text_rows: Rows, num_kept: int, num: int) -> None:
    before = {f"r{n}": [judged("w", "web", n < num_kept)] for n in range(num)}
    assert kept(at_random(tmp_path, text_rows(before))[0]) == Counter({"web": num_kept} if num_kept else {})


def test_another_filters_code(tmp_path: Path, text_rows: Rows) -> None:
    before = {f"r{n}": [judged("w", "web", n < 3, "wrong")] for n in range(9)}
    assert kept(at_random(tmp_path, text_rows(before), replaces="wrong")[0]) == {"web": 3}
    with pytest.raises(
        VlpipeError, match=r"no text of web is kept by a filter or dropped with the code 'not_matched'; take"
    ):
        at_random(tmp_path, text_rows({"a": [text("w", "web")]}), sources=("web",))


def test_two_texts_of_one_number_at_the_cut_are_an_error(tmp_path: Path, text_rows: Rows) -> None:
    rows = text_rows({"a": [judged("w", "web", True)], "b": [judged("w", "web", False)]})
    twice = rows.set_column(0, "id", pa.array(["a", "a"]))
    with pytest.raises(VlpipeError, match="two texts have the same number at the cut; set another `seed`"):
        at_random(tmp_path, twice)


def test_scores_lose_their_encoder_and_wrong_input_is_said(tmp_path: Path) -> None:
    inp = pa.schema([("id", pa.string()), scored("texts", TEXTS, "itm")])
    stage = RandomFilter(cut=File(path=str(tmp_path / "cut.json")))
    assert encoder_of(inp, "texts") == "itm"
    assert encoder_of(stage.schema(inp), "texts") == ""
    with pytest.raises(SchemaError, match=r"filter.at_random reads column 'texts'"):
        RandomCut().schema(pa.schema([("id", pa.string())]))
    (tmp_path / "cut.json").write_text(json.dumps({"column": "score", "threshold": "0.5", "last": ""}))
    with (
        pytest.raises(VlpipeError, match=r"cut.json cannot be read \(KeyError: 'seed'\); wanted"),
        stage.open(),
    ):
        pass


@pytest.mark.parametrize("sources", [(), ("web", "web")])
def test_each_source_is_named_once(sources: tuple[str, ...]) -> None:
    assert RandomCut(sources=sources).preflight() == [
        f"sources: wanted each source once, got {list(sources)}"
    ]
