"""Questions about made films: that they say the truth, and what is learned of answers without the film, by counting."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.testing import run_gather, run_map
from vlpipe.stages.common.row import LISTED, text
from vlpipe.stages.demo.captions import COLOUR_WORDS, SHAPE_WORDS
from vlpipe.stages.demo.downstream.films import COLOUR_NAMES, FIRST, LAST, SHAPE_NAMES, FilmQuestions
from vlpipe.stages.demo.film import MOTIONS, draw_film, same_objects
from vlpipe.stages.demo.video_world import TABLES, VideoWorld, _seen
from vlpipe.stages.downstream.video_questions import MsrvttQuestions, TvqaQuestions

Films = dict[str, list[list[tuple[str, str]]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Films]:
    """Files about 900 films, of which only the truth is made; and what each shows."""
    folder, films, rows = tmp_path_factory.mktemp("films"), {}, []
    for k in range(900):
        rng = np.random.default_rng([7, k])
        segments = draw_film(rng, int(rng.integers(2, 4)), 0.5)
        where = {"split": "eval" if k >= 860 else "train", "video": f"f{k}.mp4"}
        rows += [{**where, **_seen(n, one)} for n, one in enumerate(segments)]
        films[f"f{k}"] = [
            [(COLOUR_WORDS[t.colour][0], SHAPE_WORDS[t.shape][0]) for t in s.scene.things] for s in segments
        ]
    pq.write_table(pa.Table.from_pylist(rows, TABLES["seen"]), folder / "seen.parquet")
    out = run_gather(FilmQuestions(seen=File(path=str(folder / "seen.parquet"))), [], folder / "out")
    return out.artifacts, films


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_true_and_the_other_choices_wrong(made: tuple[Path, Films]) -> None:
    folder, films = made
    asked = lines(folder / "train.jsonl")
    assert len(asked) > 2000
    for one in asked:
        shown, choices = films[one["vid_name"]], [one[f"a{k}"] for k in range(5)]
        things = {thing for segment in shown for thing in segment}
        assert len(set(choices)) == 5
        answer = choices[one["answer_idx"]]
        if one["q"] in (FIRST, LAST):
            assert " ".join((shown[0] if one["q"] == FIRST else shown[-1])[0]) == answer
            assert set(choices) & {
                " ".join(segment[0]) for segment in shown if " ".join(segment[0]) != answer
            }
        elif one["q"].startswith("what colour is the "):
            shape = one["q"].split()[-2]
            assert [colour for colour, other in things if other == shape] == [answer]
        else:
            colour = one["q"].split()[-3]
            assert [shape for other, shape in things if other == colour] == [answer]


def test_texts_tell_nothing_of_the_answer(made: tuple[Path, Films]) -> None:
    """Counts on 860 films, used on 40 others: of the place, of each answer to a question, and of each among its choices."""
    folder, _ = made
    train, held = lines(folder / "train.jsonl"), lines(folder / "eval.jsonl")
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    offered: dict[str, Counter[str]] = defaultdict(Counter)
    for one in train:
        answers[one["q"]][one[f"a{one['answer_idx']}"]] += 1
        offered[one["q"]].update(one[f"a{k}"] for k in range(5))
    for question, counts in answers.items():
        if question not in (FIRST, LAST):
            assert len(set(counts.values())) == 1, question
            assert len(counts) == len(COLOUR_NAMES if "colour is" in question else SHAPE_NAMES)
    places = Counter(one["answer_idx"] for one in train)
    assert max(places.values()) / len(train) < 0.23

    def rate(one: dict[str, Any], k: int) -> float:
        said = one[f"a{k}"]
        return answers[one["q"]][said] / max(1, offered[one["q"]][said])

    right = [max(range(5), key=lambda k, one=one: rate(one, k)) == one["answer_idx"] for one in held]
    assert np.mean(right) < 0.2 + 3 * np.sqrt(0.16 / len(right))


def test_the_readers_of_both_data_sets_read_them(made: tuple[Path, Films]) -> None:
    folder, _ = made
    rows = [{"id": "r", "url": "train/f3.mp4", "texts": [text("a film", "human")]}]
    table = pa.Table.from_pylist(rows, LISTED)
    found = run_map(TvqaQuestions(questions=ListFile(path=str(folder / "train.jsonl"))), table).table
    wanted = {one["q"] for one in lines(folder / "train.jsonl") if one["vid_name"] == "f3"}
    assert {one["text"] for one in found["texts"].to_pylist()[0]} == wanted
    reader = MsrvttQuestions(questions=ListFile(path=str(folder / "train.json")), file_name="{id}")
    said = run_map(reader, table).table["said"].to_pylist()[0]
    assert {one["question"] for one in said} == wanted - {FIRST, LAST}
    spans = pq.read_table(folder / "films.parquet").to_pylist()
    assert len(spans) == 900
    assert all(one["start_s"] == 0 and one["end_s"] >= 6 for one in spans)


def test_films_of_the_same_objects_differ_in_motion() -> None:
    """The second object stays where it is drawn; lengths are those that were asked for."""
    for k in range(20):
        rng = np.random.default_rng([8, k])
        drawn = draw_film(rng, 7, 0.5, (2.5, 3.5))
        segments = same_objects(rng, drawn)
        assert all(2.5 <= one.end_s - one.start_s <= 3.5001 for one in segments)
        assert [(one.start_s, one.end_s) for one in segments] == [(one.start_s, one.end_s) for one in drawn]
        looks = {
            (*((t.colour, t.shape, t.size) for t in one.scene.things), one.scene.ground) for one in segments
        }
        assert len(looks) == 1
        assert sorted(one.motion for one in segments) == sorted(MOTIONS)
        for one in segments:
            boxes = [(t.x, t.y, t.w, t.h) for at in (one.start_s, one.end_s) for t in one.at(at).things]
            assert all(min(x, y) >= 0 and max(x + w, y + h) <= 1 for x, y, w, h in boxes)
            assert one.scene.things[1:] == one.at(one.end_s).things[1:]


def test_bad_parameters(tmp_path: Path) -> None:
    assert VideoWorld(num_segments=(3, 2)).preflight() == ["num_segments: wanted [least, most], got [3, 2]"]
    assert VideoWorld(length_s=(3, 2)).preflight() == ["length_s: wanted [least, most], got [3, 2]"]
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(VlpipeError, match=r"other.parquet: wanted seen.parquet of demo.video_world"):
        run_gather(FilmQuestions(seen=File(path=str(tmp_path / "other.parquet"))), [], tmp_path / "out")
