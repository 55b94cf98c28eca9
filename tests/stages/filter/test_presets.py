"""The presets: each rule states its source, and does what the paper or the code that it names does."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from tests.stages.filter.sized_rows import sized
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import PRESETS, Rule, load_preset
from vlpipe.stages.filter.rules import Rules

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_of_a_preset_has_its_source_and_fits_its_column(name: str) -> None:
    rules = load_preset(name)
    assert all(rule.source for rule in rules)
    assert not [p for rule in rules for p in rule.problems()]
    fields = {"id": pa.string(), "url": pa.string(), "texts": TEXTS, "format": pa.string()}
    fields |= {"width": pa.int32(), "height": pa.int32(), "image": pa.binary()}
    stage = Rules(preset=name, skip=tuple(r.code for r in rules if r.needs))
    if stage.applied:
        stage.schema(pa.schema(list(fields.items())))


def test_the_presets_are_those_that_are_named() -> None:
    assert NAMES == [
        "alt_text",
        "blip",
        "captions",
        "cc12m-like",
        "cc3m-like",
        "coyo",
        "datacomp_basic",
        "laion",
        "metaclip",
    ]


def test_datacomps_borders_are_strict_where_its_code_is() -> None:
    """More than 2 words and 5 characters; sides of 200 and a ratio of 3 are in."""
    texts = [[text(t, "web")] for t in ("a b cd", "a b c", "abcd ef", "a b cd", "a b cd", "a b cd")]
    table = sized(texts, [(200, 600), (600, 200), (200, 200), (199, 300), (200, 601), (200, 200)])
    out = run_map(Rules(preset="datacomp_basic", skip=("language",)), table)
    assert [(r.id, r.why) for r in out.rejects] == [("r3", "min_side"), ("r4", "aspect_ratio")]
    found = {r["id"]: r["texts"][0]["why"] for r in out.table.to_pylist()}
    assert found == {"r0": None, "r1": "too_short", "r2": "too_few_words", "r5": None}


def test_words_about_a_rule_are_not_in_the_key() -> None:
    one = Rules(rules=(Rule(column="num_words", op=">", value=2, source="here"),))
    other = Rules(rules=(Rule(column="num_words", op=">", value=2, source="there"),))
    assert one.applied == other.applied
    assert "applied" not in Rules.NOT_IN_KEY
    assert {"preset", "rules", "skip"} == Rules.NOT_IN_KEY


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("rules: [{column: num_words, op: '>', value: 2}]")
    assert Rules(preset=str(tmp_path / "mine.yaml")).applied == (Rule(column="num_words", op=">", value=2),)
    (tmp_path / "mine.yaml").write_text("rules: [{column: num_words, op: '=>', value: 2}]")
    with pytest.raises(VlpipeError, match=r"mine.yaml, rule 1: op: Input should be '<', '<='"):
        Rules(preset=str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("A dog on the beach", None),
        ("«A dog» on the beach", None),
        ("Éric on the beach", None),
        ("a dog on the beach", "first_word"),
        ("42", "first_word"),
        ("Profile photo of a man", "boilerplate"),
        ("Her new Profile Photo", "boilerplate"),
        ("A profile photography course", None),
        ("The dog the dog the dog", "unique_words"),
    ],
)
def test_what_can_be_judged_of_cc3m(words: str, why: str | None) -> None:
    skip = tuple(r.code for r in load_preset("cc3m-like") if r.needs)
    table = sized([[text(words, "web")]], [(500, 500)]).append_column("format", pa.array(["JPEG"]))
    (row,) = run_map(Rules(preset="cc3m-like", skip=skip), table).table["texts"].to_pylist()
    assert row[0]["why"] == why


@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_a_paper_does_not_state_says_so(name: str) -> None:
    """No rule is sourced by a section from memory; who stands in for a threshold says that it is ours."""
    for rule in load_preset(name):
        assert not re.search(r"section \d|from memory", rule.source), rule
        stands_in = rule.encoder == "google-internal" or "your own threshold" in rule.needs
        assert not stands_in or re.search(r"is ours|stands for a threshold", rule.source), rule


def test_laions_crawler_looks_for_kinds_anywhere_in_a_url() -> None:
    urls = [
        "a.jpg",
        "a.gif",
        "a.gif?w=9",
        "a.svg#x",
        "data:image/png;base64,",
        "javascript:void(0)",
        "a.gifs/b.jpg",
        "b.GIF",
    ]
    rule = next(r for r in load_preset("laion") if r.id == "url_kind")
    table = pa.table({"id": urls, "url": urls})
    assert run_map(Rules(rules=(rule,)), table).table["id"].to_pylist() == ["a.jpg", "b.GIF"]
