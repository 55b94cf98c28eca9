"""Made tasks: what a model without images can know of their answers, by counting, and that the files say the truth."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.demo.captions import COLOUR_WORDS, SHAPE_WORDS
from vlpipe.stages.demo.downstream.album import Candidate, TaskWorld, balanced, with_thing, without_thing
from vlpipe.stages.demo.downstream.entailment import EntailmentWorld
from vlpipe.stages.demo.downstream.pairs import PairWorld
from vlpipe.stages.demo.downstream.vqa import VqaWorld
from vlpipe.stages.demo.scenes import COLOURS, SHAPES, draw_scene

Objects = dict[str, set[tuple[str, str]]]  # file name -> (colour, shape) of its objects


def made(world: TaskWorld, folder: Path) -> tuple[Path, Objects]:
    out = run_gather(world, [], folder)
    truth = pq.read_table(out.artifacts / "truth.parquet").to_pylist()
    assert {one["url"] for one in truth} == {p.name for p in (out.artifacts / "images").iterdir()}
    return out.artifacts, {one["url"]: {(o["colour"], o["shape"]) for o in one["objects"]} for one in truth}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def need_balance(answers: dict[str, Counter[str]], num: int) -> None:
    """Each text has `num` answers, equally often."""
    for text, counts in answers.items():
        assert len(set(counts.values())) == 1, (text, counts)
        assert len(counts) == num, (text, counts)


def test_a_question_tells_nothing_of_its_answer(tmp_path: Path) -> None:
    folder, objects = made(VqaWorld(num_train=700, num_eval=5), tmp_path)
    asked = json.loads((folder / "questions_train.json").read_text())["questions"]
    told = json.loads((folder / "annotations_train.json").read_text())["annotations"]
    words = {
        word: name
        for names in (COLOUR_WORDS, SHAPE_WORDS)
        for name, several in names.items()
        for word in several
    }
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in zip(asked, told, strict=True):
        assert question["question_id"] == answer["question_id"]
        assert len(answer["answers"]) == 10
        said = {words.get(one["answer"], one["answer"]) for one in answer["answers"]}
        (name,) = said
        things = objects[f"vqa_train_{question['image_id']:012d}.jpg"]
        text = question["question"].split()
        if text[0] == "is":
            assert (name == "yes") == (tuple(text[3:5]) in things)
        elif text[1] == "colour":
            assert (name, text[4]) in things
        else:
            assert (text[4], name) in things
        counts[question["question"]][name] += 1
    assert len(asked) > 1000
    need_balance({q: c for q, c in counts.items() if q.startswith("is")}, 2)
    need_balance({q: c for q, c in counts.items() if "colour" in q.split()[1]}, len(COLOURS))
    need_balance({q: c for q, c in counts.items() if "shape" in q.split()[1]}, len(SHAPES))


def test_a_hypothesis_tells_nothing_of_its_label(tmp_path: Path) -> None:
    folder, objects = made(EntailmentWorld(num_train=60, num_eval=7), tmp_path)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in lines(folder / "train.jsonl"):
        counts[one["sentence2"]][one["gold_label"]] += 1
        words = [word for word in one["sentence2"].split() if word in COLOURS or word in SHAPES]
        is_there = tuple(words) in objects[f"{one['Flickr30K_ID']}.jpg"]
        assert one["gold_label"] == "neutral" or is_there == (one["gold_label"] == "entailment")
    need_balance(counts, 3)
    assert len(lines(folder / "eval.jsonl")) == 6


def test_a_statement_tells_nothing_of_its_truth(tmp_path: Path) -> None:
    folder, objects = made(PairWorld(num_train=100, num_eval=3), tmp_path)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    sides: Counter[tuple[bool, ...]] = Counter()
    for one in lines(folder / "train.jsonl"):
        counts[one["sentence"]][one["label"]] += 1
        words = [word for word in one["sentence"].split() if word in COLOURS or word in SHAPES]
        name = one["identifier"].rsplit("-", 1)[0]
        has = [tuple(words) in objects[f"{name}-img{side}.png"] for side in (0, 1)]
        kind = one["sentence"].split()[0 if one["sentence"].startswith("both") else 1]
        true = all(has) if kind == "both" else has[0 if kind == "left" else 1]
        assert str(true) == one["label"]
        sides[tuple(has)] += 1
    need_balance(counts, 2)
    assert not sides[
        False, False
    ]  # an object in one image alone is always there: the sides must be told apart


def test_questions_lose_what_is_too_frequent() -> None:
    def several(question: str, **answers: int) -> list[Candidate[int]]:
        return [Candidate(question, a, ("x", "y"), k) for a, num in answers.items() for k in range(num)]

    found = balanced([*several("p", x=5, y=3), *several("q", x=4)], np.random.default_rng(0))
    assert Counter((one.question, one.answer) for one in found) == {("p", "x"): 3, ("p", "y"): 3}


@pytest.mark.parametrize("two", [0.0, 1.0])
def test_scenes_with_and_without_an_object(two: float) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, two)
        has = {(t.colour, t.shape) for t in with_thing(scene, "ring", "red").things}
        others = {(t.colour, t.shape) for t in without_thing(scene, "ring", "red", rng).things}
        assert ("red", "ring") in has
        assert ("red", "ring") not in others
        assert any("red" in one or "ring" in one for one in others)
        for things in (has, others):
            assert len({c for c, _ in things}) == len({s for _, s in things}) == len(scene.things)
