"""Generates two tasks of texts about demo scenes, in the files of GLUE's RTE and of SQuAD 2.0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.demo.captions import (
    COLOUR_WORDS,
    SHAPE_WORDS,
    human_caption,
    one_word,
    place_words,
    web_caption,
)
from vlpipe.stages.demo.scenes import COLOURS, PLACES, SHAPES, Scene, draw_scene
from vlpipe.stages.demo.world import Share

SPLITS = ("train", "dev")
RTE = ("index", "sentence1", "sentence2", "label")
NUM_THINGS = (2, 4)  # min and max number of objects in a context


@dataclass(frozen=True, kw_only=True)
class TextTasks(GatherStage):
    """Artifacts: rte/train.tsv and rte/dev.tsv, squad/train.json and squad/dev.json.

    rte: a detailed caption of a scene, and a short one of the same scene (entailment) or of one whose object has another
    colour and shape (not_entailment), about half of each. squad: sentences about 2 to 4 objects of different shapes and
    colours; the question is which colour one of them has, or where it is; `unanswerable` of the questions name a shape that
    is not there. Words are those of the captions of `demo.world`.
    """

    NAME: ClassVar[str] = "demo.tasks.text_tasks:TextTasks"
    ROWS_ARE: ClassVar[str] = "none"

    seed: int = 0
    num_train: Annotated[int, Field(ge=1)] = 2000
    num_dev: Annotated[int, Field(ge=1)] = 500
    unanswerable: Share = 0.25

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        for number, (split, num) in enumerate(zip(SPLITS, (self.num_train, self.num_dev), strict=True)):
            pairs = Path(job.artifacts, "rte", f"{split}.tsv")
            questions = Path(job.artifacts, "squad", f"{split}.json")
            for file in (pairs, questions):
                file.parent.mkdir(parents=True, exist_ok=True)
            lines = ["\t".join(RTE), *("\t".join(row) for row in self._pairs(number, num))]
            pairs.write_text("\n".join(lines) + "\n", encoding="utf-8")
            content = {
                "version": "v2.0",
                "data": [{"title": split, "paragraphs": list(self._paragraphs(number, num))}],
            }
            questions.write_text(json.dumps(content), encoding="utf-8")

    def _pairs(self, split: int, num: int) -> Iterator[tuple[str, ...]]:
        for k in range(num):
            rng = np.random.default_rng((self.seed, split, 0, k))
            scene = draw_scene(rng, 0.0)
            entails = bool(rng.random() < 0.5)
            other = scene if entails else _other(scene, rng)
            label = "entailment" if entails else "not_entailment"
            yield str(k), human_caption(scene, rng), web_caption(other, rng), label

    def _paragraphs(self, split: int, num: int) -> Iterator[dict[str, Any]]:
        for k in range(num):
            rng = np.random.default_rng((self.seed, split, 1, k))
            yield paragraph(f"{SPLITS[split]}{k}", rng, self.unanswerable)


def paragraph(name: str, rng: np.random.Generator, unanswerable: float) -> dict[str, Any]:
    """Returns a context with one question, as in SQuAD's files."""
    num = int(rng.integers(NUM_THINGS[0], NUM_THINGS[1] + 1))
    shapes, colours = rng.permutation(SHAPES), rng.permutation(list(COLOURS))
    places = rng.permutation(len(PLACES))
    context, spans = "", []
    for shape, colour, place in zip(shapes[:num], colours, places, strict=False):
        said = one_word(COLOUR_WORDS[str(colour)], rng), place_words(PLACES[place], rng)
        sentence = f"the {said[0]} {one_word(SHAPE_WORDS[str(shape)], rng)} is {said[1]} . "
        spans.append(
            [(said[0], len(context) + 4), (said[1], len(context) + len(sentence) - 3 - len(said[1]))]
        )
        context += sentence
    is_impossible = bool(rng.random() < unanswerable)
    asked, kind = (num if is_impossible else int(rng.integers(num))), int(rng.integers(2))
    shape_word = one_word(SHAPE_WORDS[str(shapes[asked])], rng)
    question = (f"which colour is the {shape_word} ?", f"where is the {shape_word} ?")[kind]
    answers = [] if is_impossible else [spans[asked][kind]]
    return {
        "context": context.strip(),
        "qas": [
            {
                "id": name,
                "question": question,
                "is_impossible": is_impossible,
                "answers": [{"text": said, "answer_start": start} for said, start in answers],
            }
        ],
    }


def _other(scene: Scene, rng: np.random.Generator) -> Scene:
    """Returns a scene whose object has another colour and another shape."""
    while True:
        found = draw_scene(rng, 0.0)
        mine, theirs = scene.things[0], found.things[0]
        if mine.shape != theirs.shape and mine.colour != theirs.colour:
            return found
