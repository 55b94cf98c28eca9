"""Wrong captions are wrong by exactly one thing, swaps keep their words, and the files say what the truth says."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.demo.check_text import parse, right
from vlpipe.stages.demo.fine_grained.contrasts import KINDS, SWAPS, contrast, exchanged
from vlpipe.stages.demo.fine_grained.polling import polls
from vlpipe.stages.demo.fine_grained.world import FineGrainedWorld
from vlpipe.stages.demo.scenes import Scene, Thing, draw_scene
from vlpipe.stages.ground_truth.filter import scene_of

CHANGED = {
    "swap_attribute": {"colour"},
    "swap_relation": {"row", "column", "centre"},
    "replace_object": {"shape"},
    "replace_attribute": {"colour"},
    "replace_relation": {"row", "column", "centre"},
}
RED = Thing("circle", "red", "small", ("top", "left"), 0.2, 0.2, 0.2, 0.2)
BLUE = Thing("square", "blue", "large", ("middle", "right"), 0.6, 0.4, 0.4, 0.4)


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\S+", text))


def changes(one: str, other: str) -> list[set[str]]:
    """The attributes that differ, for each clause."""
    claims = parse(one), parse(other)
    assert claims[0] is not None
    assert claims[1] is not None
    return [
        {name for name in a.said.keys() | b.said.keys() if a.said.get(name) != b.said.get(name)}
        for a, b in zip(claims[0], claims[1], strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_caption_is_wrong_by_one_thing(kind: str) -> None:
    seen = set()
    for index in range(300):
        rng = np.random.default_rng([KINDS.index(kind), index])
        scene = draw_scene(rng, 1.0 if kind in SWAPS else 0.5)
        one, other = contrast(scene, kind, rng)
        assert right(one, scene), (one, scene)
        assert not right(other, scene), (other, scene)
        changed = [names for names in changes(one, other) if names]
        assert len(changed) == (2 if kind in SWAPS else 1), (one, other)
        assert all(names <= CHANGED[kind] for names in changed), (one, other)
        if kind in SWAPS:
            assert words(one) == words(other)
            assert right(other, exchanged(scene, kind))
            assert not right(one, exchanged(scene, kind))
        seen.add(one)
    assert len(seen) > 250


def test_a_swap_needs_two_objects() -> None:
    scene = Scene((RED,), "grey")
    with pytest.raises(ValueError, match="swap_relation needs a scene with two objects, this one has 1"):
        contrast(scene, "swap_relation", np.random.default_rng(0))


def test_exchanged_objects_keep_their_sizes_and_stand_where_the_other_stood() -> None:
    scene = Scene((RED, BLUE), "grey")
    one, other = exchanged(scene, "swap_relation").things
    assert (one.shape, one.colour, one.place) == ("circle", "red", ("middle", "right"))
    assert (one.x, one.y, one.w, one.h) == pytest.approx((0.7, 0.5, 0.2, 0.2))  # centre 0.8, 0.6
    assert (other.x, other.y, other.w, other.h) == pytest.approx((0.1, 0.1, 0.4, 0.4))  # centre 0.3, 0.3
    coloured = exchanged(scene, "swap_attribute").things
    assert [(t.shape, t.colour, t.x) for t in coloured] == [("circle", "blue", 0.2), ("square", "red", 0.6)]


def test_polls_by_hand() -> None:
    images = [["cup", "table"], ["cup", "table"], ["cup", "fork"], ["dog"], ["dog", "cat"], ["dog"]]
    popular, adversarial, random = (
        list(polls(images, kind, np.random.default_rng(0))) for kind in ("popular", "adversarial", "random")
    )
    # cup 3, dog 3, table 2, cat 1, fork 1
    assert popular[:4] == [(0, "cup", True), (0, "dog", False), (0, "table", True), (0, "cat", False)]
    assert [one for one in popular if one[0] == 3] == [(3, "dog", True), (3, "cup", False)]
    # with a cup there is a fork once, with a table never anything else
    assert adversarial[:4] == [(0, "cup", True), (0, "fork", False), (0, "table", True), (0, "cat", False)]
    assert [one for one in adversarial if one[0] == 3] == [(3, "dog", True), (3, "cat", False)]
    for found in (popular, adversarial, random):
        assert len(set(found)) == len(found) == 20
        assert all((name in images[number]) == is_there for number, name, is_there in found)


def test_where_nothing_is_absent_only_present_objects_are_asked_for() -> None:
    images = [["cup", "dog"], ["cup"]]
    assert list(polls(images, "random", np.random.default_rng(0))) == [
        (0, "cup", True),
        (0, "dog", True),
        (1, "cup", True),
        (1, "dog", False),
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("world"))


def make(folder: Path, **more: Any) -> Path:
    step = FineGrainedWorld(**{"num_images": 20, "num_pairs": 6, "two_things": 0.8, **more})
    return run_gather(step, [], folder, say=lambda _: None).artifacts


@pytest.fixture(scope="module")
def scenes(world: Path) -> dict[str, Scene]:
    return {row["url"]: scene_of(row) for row in pq.read_table(world / "truth.parquet").to_pylist()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_same_seed_same_bytes(world: Path, tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert content(make(tmp_path / "again")) == content(world)
    other = content(make(tmp_path / "other", seed=1))
    assert not {v for k, v in other.items() if "images" in k} & set(content(world).values())


def test_choices_are_right_and_wrong_of_their_images(world: Path, scenes: dict[str, Scene]) -> None:
    counts = {}
    for kind in KINDS:
        tests = json.loads((world / f"choices/{kind}.json").read_text())
        counts[kind] = len(tests)
        for test in tests.values():
            scene = scenes[test["filename"]]
            assert right(test["caption"], scene)
            assert not right(test["negative_caption"], scene)
    two = sum(len(scenes[f"fine_{number:06d}.jpg"].things) == 2 for number in range(20))
    assert 10 < two < 20
    assert counts == {kind: two if kind in SWAPS else 20 for kind in KINDS}


def test_each_caption_of_a_pair_is_right_of_its_own_image_alone(
    world: Path, scenes: dict[str, Scene]
) -> None:
    found = lines(world / "winoground.jsonl")
    assert [one["tag"] for one in found] == list(SWAPS) * 3
    for one in found:
        for image in (0, 1):
            for caption in (0, 1):
                scene = scenes[one[f"image_{image}"]]
                assert right(one[f"caption_{caption}"], scene) == (image == caption)
        assert words(one["caption_0"]) == words(one["caption_1"])


def test_questions_are_answered_by_the_truth(world: Path, scenes: dict[str, Scene]) -> None:
    files = sorted((world / "pope").iterdir())
    assert len(files) == 7
    for file in files:
        questions = lines(file)
        answers = Counter(one["label"] for one in questions)
        assert answers["yes"] == answers["no"] > 20
        for one in questions:
            name = re.fullmatch(r"Is there an? (.+) in the image\?", one["text"])
            assert name is not None
            assert right(name[1], scenes[one["image"]]) == (one["label"] == "yes"), one
            if "recombined" in file.name and one["label"] == "no":
                colour, shape = name[1].split()
                assert colour in {thing.colour for thing in scenes[one["image"]].things}
                assert shape in {thing.shape for thing in scenes[one["image"]].things}
