"""Words exchanged for others of the same attribute: as training texts that are wrong, and as tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import text
from vlpipe.stages.demo.captions import COLOUR_WORDS, GROUND_WORDS, SHAPE_WORDS, SIZE_WORDS, web_caption
from vlpipe.stages.demo.check_text import right
from vlpipe.stages.demo.scenes import draw_scene
from vlpipe.stages.fine_grained.exchange import Exchange
from vlpipe.stages.fine_grained.foils import Foils
from vlpipe.stages.fine_grained.wrong_words import WrongWords

Rows = Callable[..., pa.Table]
PETS = {
    "animal": {"dog": ["dog", "puppy"], "cat": []},
    "colour": {"orange": [], "black": [], "off-white": ["off - white", "cream"]},
}


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("A dog .", "A cat ."),
        ("two dogs and a Puppy", "two dogs and a Cat"),  # a plural is another word; its capital stays
        ("a dog sees another dog, not a hotdog", "a cat sees another cat, not a hotdog"),
        ("a dog and a cat", None),  # no animal is left
        ("nothing", None),
    ],
)
def test_all_places_of_a_value_get_the_other(before: str, after: str | None) -> None:
    assert Exchange(PETS).exchanged(before, "animal", draw()) == after


def test_the_article_follows_the_word_and_a_word_may_have_several_parts() -> None:
    exchange = Exchange(PETS)
    true = ["off-white"]
    assert exchange.exchanged("An orange dog", "colour", draw(), true) == "A black dog"
    assert exchange.exchanged("a  black dog", "colour", draw(), true) == "an  orange dog"
    assert exchange.exchanged("an off - white dog", "colour", draw(), ["black"]) == "an orange dog"
    assert exchange.said("a black dog, a cream cat, an off - white puppy") == {
        "colour": ["black", "off-white"],
        "animal": ["dog", "cat"],
    }


def test_what_it_cannot_exchange_is_said() -> None:
    for attributes, why in (
        ({}, "wanted at least one attribute"),
        ({"colour": {"red": []}}, r"colour: wanted at least two values, got \['red'\]"),
        ({"a": {"x": ["one"], "y": ["One"]}}, "'one' says a y and a x"),
        ({"a": {"x": [" "], "y": []}}, "a: a word of 'x' is empty"),
    ):
        with pytest.raises(ValueError, match=why):
            Exchange(attributes)
        assert WrongWords(attributes=attributes).preflight()[0].startswith("attributes: ")
        assert Foils(attributes=attributes).preflight() != []
    assert WrongWords(attributes=PETS).preflight() == []


DEMO = {
    "shape": {value: list(words) for value, words in SHAPE_WORDS.items()},
    "colour": {value: list(words) for value, words in COLOUR_WORDS.items()},
    "size": {value: list(words) for value, words in SIZE_WORDS.items()},
    "ground": {value: list(words) for value, words in GROUND_WORDS.items()},
}


def test_a_right_text_of_a_demo_scene_becomes_wrong_in_one_attribute(text_rows: Rows) -> None:
    rng = draw()
    scenes = {f"row{k}": draw_scene(rng, 0.5) for k in range(300)}
    before = {name: web_caption(scene, rng) for name, scene in scenes.items()}
    out = run_map(WrongWords(attributes=DEMO), text_rows({name: [one] for name, one in before.items()}))
    after = {row["id"]: row["texts"][0]["text"] for row in out.table.to_pylist()}
    exchange, changed = Exchange(DEMO), Counter[str]()
    for name, scene in scenes.items():
        assert right(before[name], scene)
        assert not right(after[name], scene)
        (attribute,) = [
            one
            for one, said in exchange.said(before[name]).items()
            if exchange.said(after[name])[one] != said
        ]
        changed[f"changed:{attribute}"] += 1
    assert out.counts == changed
    assert len(changed) == 4
    assert min(changed.values()) > 30


def texts_of(table: pa.Table) -> list[list[str]]:
    return [[one["text"] for one in row] for row in table["texts"].to_pylist()]


def test_only_kept_texts_of_the_sources_and_only_a_share_are_changed(text_rows: Rows) -> None:
    rows = {
        "a": ["a dog", text("a dog", "human"), text("a dog", "web", kept=False, why="junk"), "nothing"],
        "b": [text("a dog", "web", kept=True)],
        "c": ["a dog", "a cat"],  # the other text says the only other animal
    }
    stage = WrongWords(attributes={"animal": PETS["animal"]})
    out = run_map(stage, text_rows(rows))
    assert texts_of(out.table) == [["a cat", "a dog", "a dog", "nothing"], ["a cat"], ["a dog", "a cat"]]
    assert out.counts == {"changed:animal": 2, "nothing_to_change": 3}
    many = text_rows({str(k): ["a dog"] for k in range(400)})
    some = run_map(WrongWords(attributes=PETS, share=0.25), many)
    assert sum(one == ["a cat"] for one in texts_of(some.table)) == some.counts["changed:animal"]
    assert 70 < some.counts["changed:animal"] < 130


def test_a_row_is_changed_in_the_same_way_in_any_company(text_rows: Rows) -> None:
    table = text_rows({str(k): ["an orange dog"] for k in range(20)})
    together = texts_of(run_map(WrongWords(attributes=PETS), table).table)
    alone = [texts_of(run_map(WrongWords(attributes=PETS), table.slice(k, 1)).table)[0] for k in range(20)]
    assert alone == together
    assert texts_of(run_map(WrongWords(attributes=PETS, seed=1), table).table) != together


def foils(texts: Sequence[str], text_rows: Rows) -> list[dict[str, str]]:
    table = text_rows({"row": [text(one, "human") for one in texts]})
    (found,) = run_map(Foils(attributes=PETS), table).table["choices"].to_pylist()
    return found


def test_a_foil_says_nothing_that_another_caption_says(text_rows: Rows) -> None:
    found = foils(["a black dog", "a puppy", "something cream"], text_rows)
    by_kind = {one["kind"]: one for one in found}
    assert set(by_kind) == {"animal", "colour"}
    assert by_kind["animal"]["id"] == "animal/row"
    assert by_kind["animal"]["wrong"] in ("a black cat", "a cat")
    assert by_kind["colour"]["wrong"] in ("an orange dog", "something orange")
    for one in found:
        assert one["right"] in ("a black dog", "a puppy", "something cream")


def test_without_a_word_or_another_value_there_is_no_test(text_rows: Rows) -> None:
    assert foils(["a tree"], text_rows) == []
    assert foils(["a dog", "a cat"], text_rows) == []
    assert run_map(Foils(attributes=PETS, source="web"), text_rows({"r": ["a dog"]})).table[
        "choices"
    ].to_pylist() == [[{"id": "animal/r", "kind": "animal", "right": "a dog", "wrong": "a cat"}]]
