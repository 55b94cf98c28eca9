"""The judge reads every template: what the generator says of a scene is true, its wrong texts are not."""

from __future__ import annotations

import numpy as np
import pytest

from vlpipe.stages.demo import captions, noise
from vlpipe.stages.demo.check_text import right
from vlpipe.stages.demo.scenes import Scene, Thing, draw_scene

RED = Thing("circle", "red", "small", ("top", "left"), 0.1, 0.1, 0.2, 0.2)
BLUE = Thing("square", "blue", "large", ("middle", "right"), 0.6, 0.4, 0.4, 0.4)
ONE, TWO = Scene((RED,), "grey"), Scene((RED, BLUE), "grey")


@pytest.mark.parametrize("templates", [captions.HUMAN, captions.WEB])
@pytest.mark.parametrize("two_things", [0.0, 1.0])
def test_every_template_is_right_of_its_own_scene(
    templates: tuple[tuple[str, int], ...], two_things: float
) -> None:
    for at, (template, _) in enumerate(templates):
        for index in range(60):
            rng = np.random.default_rng([at, index])
            scene = draw_scene(rng, two_things)
            text = captions._caption(scene, rng, ((template, 1),), detail=0.7)
            assert right(text, scene), (text, scene)


def test_every_word_and_every_place_has_a_reading() -> None:
    words = [captions.SHAPE_WORDS, captions.COLOUR_WORDS, captions.SIZE_WORDS, captions.GROUND_WORDS]
    spoken = [word for meanings in words for all_words in meanings.values() for word in all_words]
    assert len(spoken) == len(set(spoken)), "a word with two meanings cannot be judged"
    assert not captions.FILLER & set(spoken)


def test_wrong_texts_of_every_kind_are_wrong() -> None:
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, 0.3) for _ in range(300)]
    kinds = set()
    for scene in scenes:
        text, kind = noise.wrong_text(scene, scenes, rng)
        kinds.add(kind)
        assert not right(text, scene), (text, kind, scene)
    assert kinds == set(noise.KINDS)


@pytest.mark.parametrize(
    "text",
    [
        "a small red circle in the top left on a grey background",
        "upper left corner: red disc".replace(":", " ,"),
        "a disc",
        "A Red Circle.",
    ],
)
def test_right(text: str) -> None:
    assert right(text, ONE)


@pytest.mark.parametrize(
    "text",
    [
        "a large red circle",
        "a red square",
        "a red blue circle",  # two colours for one object
        "a red circle at the top",  # it is at the top left: half a place is another place
        "a red circle in the middle",
        "a red circle on a white background",
        "a red thing",  # unknown word
        "a red circle and a blue square",  # there is one object
        "red",  # no shape
        "a red circle and",
        "",
        "photo",
    ],
)
def test_wrong(text: str) -> None:
    assert not right(text, ONE)


def test_two_objects_are_not_mixed_up() -> None:
    assert right("a blue square on the right and a red circle", TWO)
    assert right("a blue square", TWO)
    assert not right("a red square and a blue circle", TWO)
    assert not right("a red circle and a red circle", TWO)
    assert not right("a red circle on the right", TWO)
