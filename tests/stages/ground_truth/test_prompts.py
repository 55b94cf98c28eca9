"""Claims of texts held against what a detector sees."""

from __future__ import annotations

import numpy as np
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.demo.captions import human_caption
from vlpipe.stages.demo.scenes import draw_scene
from vlpipe.stages.ground_truth.prompts import claimed, described, shares


def test_what_a_text_claims() -> None:
    assert claimed("a small red circle at top left on white") == {
        "shape": "circle",
        "colour": "red",
        "size": "small",
        "place": "top-left",
    }
    assert claimed("on the right a violet hoop on grey") == {
        "shape": "ring",
        "colour": "purple",
        "place": "middle-right",
    }
    assert claimed("there is a big blue box in the centre")["place"] == "middle-middle"
    for wrong in ("a red circle and a blue square", "a dog"):
        with pytest.raises(VlpipeError, match="is not a text of the demo world about one object"):
            claimed(wrong)


def test_claims_of_true_boxes_hold() -> None:
    """What a perfect detector sees in 200 scenes fulfils all that their captions claim."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = draw_scene(rng, 0.0)
        (thing,) = scene.things
        box = (thing.x, thing.y, thing.x + thing.w, thing.y + thing.h)
        seen = described(thing.shape, thing.colour, box)
        said = claimed(human_caption(scene, rng))
        assert said.items() <= seen.items()
        assert {"shape", "colour"} <= said.keys()


def test_shares_by_hand() -> None:
    red = described("circle", "red", (0.1, 0.1, 0.4, 0.4))
    blue = described("square", "blue", (0.6, 0.6, 0.9, 0.9))
    found = [
        ("a red circle", 0, 1, None),
        ("a red circle", 1, 0, red),
        ("a small blue square", 0, 0, blue),
        ("a small blue square", 1, 1, red),
    ]
    values = {r["name"]: (r["value"], r["num_rows"]) for r in shares(found)}
    assert values["claims/first"] == (3 / 5, 5)
    assert values["claims/best"] == (5 / 5, 5)
    assert values["claims/all"] == (6 / 10, 10)
    # the blue square's text for both images of the red circle, and the other way round
    assert values["claims/shuffled"] == (3 / 10, 10)
    assert values["shape/all"] == (2 / 4, 4)
    assert values["size/all"] == (2 / 2, 2)
    assert values["place/all"] == (None, 0)
