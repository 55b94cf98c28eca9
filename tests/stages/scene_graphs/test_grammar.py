"""The parser on sentences parsed by hand, and on captions of the demo world against what is drawn."""

from __future__ import annotations

import time

import numpy as np
import pytest

from vlpipe.stages.demo.captions import (
    COLOUR_WORDS,
    GROUND_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    human_caption,
    web_caption,
)
from vlpipe.stages.demo.scenes import Scene, draw_scene
from vlpipe.stages.scene_graphs.grammar import parse

Graph = tuple[list[str], set[tuple[str, str]], set[tuple[str, str, str]]]


def words_of(text: str) -> Graph:
    """Objects, (object, attribute) and (subject, relation, object) as words."""
    graph = parse(text)
    objects = [text[one.start : one.end] for one in graph.objects]
    attributes = {(objects[one.object], text[one.start : one.end]) for one in graph.attributes}
    relations = {
        (objects[one.subject], text[one.start : one.end], objects[one.object]) for one in graph.relations
    }
    return objects, attributes, relations


@pytest.mark.parametrize(
    ("text", "objects", "attributes", "relations"),
    [
        (
            "A black and white dog is sitting on a red couch next to two pillows.",
            "dog couch pillows",
            {("dog", "black"), ("dog", "white"), ("couch", "red"), ("pillows", "two")},
            {("dog", "sitting on", "couch"), ("couch", "next to", "pillows")},
        ),
        (
            "A smiling man riding a brown horse in front of a large building",
            "man horse building",
            {("man", "smiling"), ("horse", "brown"), ("building", "large")},
            {("man", "riding", "horse"), ("horse", "in front of", "building")},
        ),
        ("the cat is black and white", "cat", {("cat", "black"), ("cat", "white")}, set()),
        (
            "a plate of food sits on a wooden table",
            "plate food table",
            {("table", "wooden")},
            {("plate", "of", "food"), ("food", "sits on", "table")},
        ),
        (
            "a group of people playing frisbee in the park",
            "people frisbee park",
            set(),
            {("people", "playing", "frisbee"), ("frisbee", "in", "park")},
        ),
        (
            "a man standing and holding a cup",
            "man cup",
            {("man", "standing")},
            {("man", "holding", "cup")},
        ),
        (
            "A man's hat on the top shelf of a closet",
            "hat shelf closet",
            {("hat", "man's"), ("shelf", "top")},
            {("hat", "on", "shelf"), ("shelf", "of", "closet")},
        ),
        (
            "a pair of skis leaning against a wall . a dog runs",
            "skis wall dog",
            {("dog", "runs")},
            {("skis", "leaning against", "wall")},
        ),
        (
            "a street filled with parked cars",
            "street cars",
            {("cars", "parked")},
            {("street", "filled with", "cars")},
        ),
        (
            "trees at the left side of the road , a boy on the right",
            "trees road boy",
            {("boy", "right")},
            {("trees", "at the left side of", "road")},
        ),
        ("a cat and a dog on a bed", "cat dog bed", set(), {("dog", "on", "bed")}),
        (
            "a young smiling woman who rides a bike",
            "woman bike",
            {("woman", "young"), ("woman", "smiling")},
            {("woman", "rides", "bike")},
        ),
        ("an orange on white", "orange white", set(), {("orange", "on", "white")}),
        ("", "", set(), set()),
        ("on the left", "", set(), set()),
        ("is there ?!", "", set(), set()),
    ],
)  # fmt: skip
def test_sentences_parsed_by_hand(
    text: str, objects: str, attributes: set[tuple[str, str]], relations: set[tuple[str, str, str]]
) -> None:
    assert words_of(text) == (objects.split(), attributes, relations)


ROLE = {
    word: role
    for role, groups in (
        ("colour", COLOUR_WORDS),
        ("size", SIZE_WORDS),
        ("ground", GROUND_WORDS),
        ("shape", SHAPE_WORDS),
    )
    for words in groups.values()
    for word in words
}
PLACE = {"upper": "top", "lower": "bottom", "centre": "middle"}


def check(scene: Scene, text: str) -> int:
    """Compares the graph of a caption with the scene; returns the number of attributes that are true of their thing."""
    objects, attributes, relations = words_of(text)
    said = [word for word in text.split() if ROLE.get(word) == "shape"]
    assert [word for word in objects if ROLE.get(word) == "shape"] == said
    things = {word: thing for word in said for thing in scene.things if word in SHAPE_WORDS[thing.shape]}
    assert len(things) == len(said)
    rest = [word for word in objects if word not in things]
    assert len(rest) <= 1
    right = 0
    for name, word in attributes:
        if name in rest:
            assert word in GROUND_WORDS[scene.ground]
            right += 1
            continue
        thing = things[name]
        place = {PLACE.get(one, one) for one in word.split()}
        assert (
            word in COLOUR_WORDS[thing.colour] or word in SIZE_WORDS[thing.size] or place <= set(thing.place)
        ), word
        right += len(word.split())
    for subject, word, name in relations:
        assert (word == "on" and subject in things and name in GROUND_WORDS[scene.ground]) or (
            word == "with" and subject in ("background", "picture") and name in things
        )
        right += word == "on"
    return right


def test_captions_of_the_world_against_the_scenes() -> None:
    """Each word for a colour, size, place or ground is said of the thing that it is true of, and none is left over."""
    places = {"top", "bottom", "upper", "lower", "left", "right", "middle", "centre"}
    for index in range(3000):
        rng = np.random.default_rng([7, index])
        scene = draw_scene(rng, 0.5)
        for caption in (human_caption, web_caption):
            text = caption(scene, rng)
            num = sum(
                word in places or ROLE.get(word) in ("colour", "size", "ground") for word in text.split()
            )
            assert check(scene, text) == num, text


def test_time_is_linear_in_the_text() -> None:
    begin = time.process_time()
    found = parse("a small red dog sitting on the left of " * 10_000)
    assert len(found.objects) == 10_000
    parse("sitting on " * 30_000)
    parse("black and " * 30_000)
    assert time.process_time() - begin < 5
