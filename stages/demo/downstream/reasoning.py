"""Questions about tagged objects of demo scenes in the files of VCR: four answers, and four rationales."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vlpipe.stages.demo.downstream.album import Album, TaskWorld
from vlpipe.stages.demo.scenes import COLOURS, PLACES, SIZE_PX, Thing

NUM_CHOICES = 4
Token = str | list[int]


@dataclass(frozen=True, kw_only=True)
class ReasoningWorld(TaskWorld):
    """Artifacts: images/NAME and images/NAME.json (boxes and names of the objects), truth.parquet, train.jsonl, eval.jsonl.

    num_train, num_eval: images, with a question about each object. The answers are its colour and three others, the
    rationales its place and three others, all equally probable and in random order, so that no text tells the right one.
    """

    NAME: ClassVar[str] = "demo.downstream.reasoning:ReasoningWorld"
    STREAM: ClassVar[int] = 24

    def make(self, album: Album, split: str, num: int) -> str:
        lines: list[dict[str, Any]] = []
        for index in range(num):
            rng = self.rng(split, index)
            scene, name = self.scene(rng), f"vcr_{split}_{index:06d}"
            album.add(f"{name}.jpg", scene, rng)
            boxes = [[SIZE_PX * v for v in (t.x, t.y, t.x + t.w, t.y + t.h)] for t in scene.things]
            names = [thing.shape for thing in scene.things]
            about = {
                "boxes": [[*box, 1.0] for box in boxes],
                "names": names,
                "width": SIZE_PX,
                "height": SIZE_PX,
            }
            (album.folder / "images" / f"{name}.json").write_text(json.dumps(about))
            for number, thing in enumerate(scene.things):
                line = {
                    "img_fn": f"{name}.jpg",
                    "metadata_fn": f"{name}.json",
                    "objects": names,
                    "annot_id": f"{split}-{len(lines)}",
                    "question": ["what", "colour", "is", [number], "?"],
                }
                lines.append({**line, **choices_of(thing, number, rng)})
        album.write_lines(f"{split}.jsonl", lines, self.rng(split, num))
        return f"{len(lines)} questions about {num} images"


def choices_of(thing: Thing, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Returns answers and rationales about an object, with the places of the right ones."""
    answers, answer = drawn(thing.colour, list(COLOURS), rng)
    places, place = drawn(thing.place, PLACES, rng)
    told: list[list[Token]] = [["because", [number], "is", "at", *dict.fromkeys(one)] for one in places]
    return {
        "answer_choices": [["it", "is", colour] for colour in answers],
        "answer_label": answer,
        "rationale_choices": told,
        "rationale_label": place,
    }


def drawn(right: Any, values: Sequence[Any], rng: np.random.Generator) -> tuple[list[Any], int]:
    """Returns the right value and three others in random order, and the place of the right one."""
    others = [one for one in values if one != right]
    found = [right, *(others[k] for k in rng.permutation(len(others))[: NUM_CHOICES - 1])]
    order = rng.permutation(NUM_CHOICES).tolist()
    return [found[k] for k in order], order.index(0)
