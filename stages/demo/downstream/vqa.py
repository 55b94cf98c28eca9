"""Questions about demo scenes in the files of VQA v2, with ten answers each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vlpipe.stages.demo.captions import COLOUR_WORDS, SHAPE_WORDS, one_word
from vlpipe.stages.demo.downstream.album import Album, Candidate, TaskWorld, balanced, other_than
from vlpipe.stages.demo.scenes import COLOURS, SHAPES, Scene

ANNOTATORS = 10
YES_NO = ("yes", "no")


@dataclass(frozen=True, kw_only=True)
class VqaWorld(TaskWorld):
    """Artifacts: images/NAME, truth.parquet, and for train and eval questions_SPLIT.json and annotations_SPLIT.json.

    num_train, num_eval: images. Questions are the colour of a shape, the shape of a colour, and whether an object is there.
    Each answer to a question, word for word, is as frequent as any other, so that the question tells nothing. Ten people
    answer with the words of captions: some say violet for purple.
    """

    NAME: ClassVar[str] = "demo.downstream.vqa:VqaWorld"
    STREAM: ClassVar[int] = 21

    def make(self, album: Album, split: str, num: int) -> str:
        found: list[Candidate[int]] = []
        for index in range(num):
            rng = self.rng(split, 0, index)
            scene = self.scene(rng)
            album.add(file_name(split, index), scene, rng)
            found += questions(scene, index, rng)
        asked = balanced(found, self.rng(split, 1))
        listed = [
            {"image_id": one.item, "question": one.question, "question_id": number}
            for number, one in enumerate(asked)
        ]
        told = [annotation(one, number, self.rng(split, 2, number)) for number, one in enumerate(asked)]
        for name, content in (
            ("questions", {"data_subtype": split, "questions": listed}),
            ("annotations", {"data_subtype": split, "annotations": told}),
        ):
            (album.folder / f"{name}_{split}.json").write_text(json.dumps(content))
        return f"{len(asked)} questions about {len({one.item for one in asked})} images"


def file_name(split: str, index: int) -> str:
    return f"vqa_{split}_{index:012d}.jpg"


def questions(scene: Scene, image: int, rng: np.random.Generator) -> Iterator[Candidate[int]]:
    """Yields all questions about the objects of a scene; an absent object has the colour or the shape of one of them."""
    there = {(thing.colour, thing.shape) for thing in scene.things}
    for thing in scene.things:
        colours, shapes = tuple(COLOURS), SHAPES
        yield Candidate(f"what colour is the {thing.shape} ?", thing.colour, colours, image)
        yield Candidate(f"what shape is the {thing.colour} thing ?", thing.shape, shapes, image)
        yield Candidate(f"is there a {thing.colour} {thing.shape} ?", "yes", YES_NO, image)
        while True:
            absent = (
                (other_than(thing.colour, colours, rng), thing.shape)
                if rng.random() < 0.5
                else (thing.colour, other_than(thing.shape, shapes, rng))
            )
            if absent not in there:
                break
        yield Candidate(f"is there a {' '.join(absent)} ?", "no", YES_NO, image)


def annotation(one: Candidate[int], number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Returns the answers of ten people to a question; the commonest is the one that VQA calls `multiple_choice_answer`."""
    words = {**COLOUR_WORDS, **SHAPE_WORDS}.get(one.answer, (one.answer,))
    said = [one_word(words, rng) for _ in range(ANNOTATORS)]
    return {
        "question_id": number,
        "image_id": one.item,
        "answer_type": "yes/no" if one.answer in YES_NO else "other",
        "multiple_choice_answer": Counter(said).most_common(1)[0][0],
        "answers": [
            {"answer": word, "answer_confidence": "yes", "answer_id": k + 1} for k, word in enumerate(said)
        ],
    }
