"""The measures on scores and captions that are written down: what counts, what ties are, what is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import Job
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.common.row import RESULTS, TEXTS, text
from vlpipe.stages.evaluate.items import FILE, ITEMS
from vlpipe.stages.fine_grained.chair import Chair
from vlpipe.stages.fine_grained.choice import ImageTextChoice
from vlpipe.stages.fine_grained.pope import Pope, auc
from vlpipe.stages.fine_grained.scoring import Asked, ScoresTexts
from vlpipe.stages.fine_grained.vocabulary import Vocabulary, read_synonyms
from vlpipe.stages.fine_grained.winoground import Winoground, hits

Figures = dict[str, tuple[float | None, int]]
NOWHERE = Weights(path="nowhere")


def scripted(cls: type[ScoresTexts], rows: Sequence[tuple[str, Any, dict[str, float]]], **more: Any) -> Any:
    """A stage whose rows (id, tests) have the scores {text: score} that are written down, instead of a model's."""

    @dataclass(frozen=True, kw_only=True)
    class Scripted(cls):  # type: ignore[misc, valid-type]
        def scored(
            self, job: Job, texts_of: Callable[[Any], Sequence[str]], rejects: list[Reject]
        ) -> Iterator[tuple[Asked, list[float]]]:
            for name, tests, score in rows:
                texts = texts_of(tests)
                yield Asked(name, tests, texts), [score[one] for one in texts]

    return Scripted(model=NOWHERE, **more)


def figures(out: GatherOutput) -> Figures:
    assert out.table.schema == RESULTS
    return {row["name"]: (row["value"], row["num_rows"]) for row in out.table.to_pylist()}


def items(out: GatherOutput) -> dict[tuple[str, str], float]:
    table = pq.read_table(out.artifacts / FILE)
    assert table.schema.equals(ITEMS)
    found = {(row["metric"], row["item"]): row["value"] for row in table.to_pylist()}
    assert len(found) == table.num_rows
    return found


def need_means(out: GatherOutput, names: Sequence[str]) -> None:
    """The items of these figures have their value as mean, and their number."""
    found = items(out)
    for name in names:
        values = [value for (metric, _), value in found.items() if metric == name]
        assert figures(out)[name] == (pytest.approx(np.mean(values)), len(values))


def choice(name: str, kind: str, right: str, wrong: str) -> dict[str, str]:
    return {"id": f"{kind}/{name}", "kind": kind, "right": right, "wrong": wrong}


def test_choices_by_kind_and_ties_are_wrong(tmp_path: Path) -> None:
    rows = [
        (
            "a",
            [choice("0", "swap", "r1", "w1"), choice("0", "add", "r2", "w2")],
            {"r1": 2, "w1": 1, "r2": 0, "w2": 1},
        ),
        (
            "b",
            [choice("1", "swap", "r", "w"), choice("2", "swap", "same", "same")],
            {"r": -2, "w": -1, "same": 3},
        ),
        ("c", [choice("1", "add", "r", "w")], {"r": 0.5, "w": 0.25}),
    ]
    said: list[str] = []
    out = run_gather(scripted(ImageTextChoice, rows), [], tmp_path, said.append)
    assert figures(out) == {"choice": (2 / 5, 5), "choice/add": (1 / 2, 2), "choice/swap": (1 / 3, 3)}
    need_means(out, ["choice", "choice/add", "choice/swap"])
    rows_of = pq.read_table(out.artifacts / FILE, columns=["item", "row"]).to_pylist()
    assert {one["item"]: one["row"] for one in rows_of}["swap/1"] == "b"
    assert ImageTextChoice.ARTIFACT_REFERENCES == Chair.ARTIFACT_REFERENCES == {FILE: ("row",)}
    assert items(out)["choice/swap", "swap/0"] == 1
    assert items(out)["choice/swap", "swap/2"] == 0
    assert said == ["1 ties: equal texts, or texts that differ after max_text_length"]


def test_the_same_test_twice_is_refused(tmp_path: Path) -> None:
    rows = [(name, [choice("0", "swap", "r", "w")], {"r": 2, "w": 1}) for name in "ab"]
    with pytest.raises(VlpipeError, match="two results for choice of 'swap/0'"):
        run_gather(scripted(ImageTextChoice, rows), [], tmp_path)


@pytest.mark.parametrize(
    ("scores", "text_score", "image_score"),
    [
        ([[2, 1], [1, 2]], True, True),
        ([[1, 1], [0, 2]], False, True),  # a tie of image 0's captions
        ([[2, 1], [2, 3]], True, False),  # caption 0 fits both images equally
        ([[5, 4], [2, 3]], True, False),  # image 0 fits everything better
        ([[1, 0], [1, 0]], False, False),
        ([[1, 2], [2, 1]], False, False),
    ],
)
def test_a_pair_counts_as_the_paper_says(
    scores: list[list[float]], text_score: bool, image_score: bool
) -> None:
    assert hits(scores) == {
        "text_score": text_score,
        "image_score": image_score,
        "group_score": text_score and image_score,
    }


def pair(name: str, side: int, tag: str | None = None) -> dict[str, Any]:
    return {"id": name, "side": side, "captions": ["c0", "c1"], "tag": tag}


def test_pairs_by_tag_and_a_missing_partner(tmp_path: Path) -> None:
    rows = [
        ("a1", pair("a", 1, "Object"), {"c0": 1, "c1": 2}),  # the sides in any order
        ("b0", pair("b", 0, "Both"), {"c0": 5, "c1": 4}),
        ("lonely", pair("c", 0, "Both"), {"c0": 5, "c1": 4}),
        ("a0", pair("a", 0, "Object"), {"c0": 2, "c1": 1}),
        ("b1", pair("b", 1, "Both"), {"c0": 2, "c1": 3}),
        ("d0", pair("d", 0), {"c0": 1, "c1": 1}),
        ("d1", pair("d", 1), {"c0": 1, "c1": 1}),
    ]
    out = run_gather(scripted(Winoground, rows), [], tmp_path)
    assert out.rejects == [Reject("lonely", "filtered", "no_partner", "pair c")]
    assert figures(out) == {
        "text_score": (2 / 3, 3),
        "image_score": (1 / 3, 3),
        "group_score": (1 / 3, 3),
        "text_score/Object": (1, 1),
        "image_score/Object": (1, 1),
        "group_score/Object": (1, 1),
        "text_score/Both": (1, 1),
        "image_score/Both": (0, 1),
        "group_score/Both": (0, 1),
    }
    need_means(out, list(figures(out)))
    with pytest.raises(VlpipeError, match="no pair has both images; the first of 1 rejected: pair a"):
        run_gather(scripted(Winoground, rows[:1]), [], tmp_path / "none")
    with pytest.raises(VlpipeError, match="rows a1 and a1 are both image 1 of pair 'a'"):
        run_gather(scripted(Winoground, rows[:1] * 2), [], tmp_path / "twice")


def question(name: str, kind: str, thing: str, is_there: bool) -> dict[str, Any]:
    return {"id": name, "kind": kind, "object": thing, "text": f"Is there a {thing}?", "is_there": is_there}


def test_pope_by_hand(tmp_path: Path) -> None:
    """random: 3 present (yes, yes, no), 3 absent (yes, no, no); popular: none there, none said."""
    rows = [
        (
            "a",
            [question("1", "random", "dog", True), question("2", "random", "ape", False)],
            {"there is a dog": 1.0, "there is an ape": 0.5},
        ),
        (
            "b",
            [question(str(n), "random", thing, n < 5) for n, thing in ((3, "cat"), (4, "cow"), (5, "car"))]
            + [question("6", "random", "cup", False), question("7", "popular", "dog", False)],
            {"there is a cat": 0.0, "there is a cow": -1.0, "there is a car": -1.0, "there is a cup": -2.0}
            | {"there is a dog": -3.0},
        ),
    ]
    stage = scripted(Pope, rows, template="there is {a} {object}")
    assert stage.preflight() == []
    out = run_gather(stage, [], tmp_path)
    found = figures(out)
    assert found["accuracy/random"] == (4 / 6, 6)
    assert found["precision/random"] == (2 / 3, 3)
    assert found["recall/random"] == (2 / 3, 3)
    assert found["f1/random"] == (2 / 3, 6)
    assert found["yes_ratio/random"] == (3 / 6, 6)
    # present 1, 0, -1; absent 0.5, -1, -2: 3 + 2 + 1.5 of 9 pairs
    assert found["auc/random"] == (pytest.approx(6.5 / 9), 6)
    assert found["accuracy/popular"] == (1, 1)
    assert [found[f"{name}/popular"][0] for name in ("precision", "recall", "f1", "yes_ratio", "auc")] == [
        *(None, None, None),
        0,
        None,
    ]
    values = items(out)
    assert [values["recall/random", name] for name in "134"] == [1, 1, 0]
    assert ("recall/random", "2") not in values
    need_means(out, ["accuracy/random", "yes_ratio/random", "recall/random"])
    strict = scripted(Pope, rows, template="there is {a} {object}", threshold=1 / (1 + math.exp(-0.75)))
    assert figures(run_gather(strict, [], tmp_path / "strict"))["yes_ratio/random"] == (1 / 6, 6)
    loose = scripted(Pope, rows, template="there is {a} {object}", score="similarity", threshold=-1)
    assert figures(run_gather(loose, [], tmp_path / "loose"))["yes_ratio/random"] == (5 / 6, 6)


@pytest.mark.parametrize("cls", [ImageTextChoice, Winoground, Pope])
def test_a_model_without_what_the_scores_need_is_named_by_the_plan(cls: type[ScoresTexts]) -> None:
    stages: Any = {
        "maker": SimpleNamespace(stand_in=lambda stages: SimpleNamespace(image_feat=1, text_feat=1))
    }
    weights = Weights(step="maker")
    assert cls(model=weights, score="similarity").preflight_after(stages) == []
    (said,) = cls(model=weights).preflight_after(stages)
    assert said.startswith(
        "step 'maker' makes a SimpleNamespace, which does not have what this step needs (Judges"
    )
    assert (
        cls(model=NOWHERE, batch_size=20).preflight()[0].startswith("batch_size must be a positive multiple")
    )


def test_pope_says_what_cannot_work(tmp_path: Path) -> None:
    def said(**more: Any) -> list[str]:
        return Pope(model=NOWHERE, **more).preflight()

    assert said(template="{text}") == said(threshold=0.9) == said(score="similarity", threshold=0.2) == []
    assert said(template="a photo") == [
        "template must have {object} or {text}, and may have {a}, got 'a photo'"
    ]
    assert said(template="{object} {b}")[0].startswith("template must have {object} or {text}")
    assert said(template="{object") != []
    assert said(threshold=1.0) == ["threshold must be a probability between 0 and 1, got 1.0"]
    assert said(score="similarity") == ["threshold must be a cosine, from -1 to 1, got None"]
    rows = [("a", [{**question("1", "random", "", True), "object": None}], {})]
    with pytest.raises(VlpipeError, match=r"question 1 .* has no object, which template .* needs; list"):
        run_gather(scripted(Pope, rows), [], tmp_path)


def test_auc_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        high, low = (rng.integers(0, 6, rng.integers(1, 30)) for _ in range(2))
        pairs = [(a > b) + (a == b) / 2 for a in high for b in low]
        assert auc(high, low) == pytest.approx(np.mean(pairs))


SYNONYMS = (
    "Person, man, woman,  Person\nwine glass, glass\nbus\ndog, puppy\ntoilet\nchair, seat\nknife\nbear\n"
)
PHRASES = {"toilet seat": "toilet", "baby bear": "bear", "dog house": ""}


@pytest.fixture
def synonyms(tmp_path: Path) -> Path:
    (tmp_path / "synonyms.txt").write_text(SYNONYMS)
    return tmp_path / "synonyms.txt"


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("Two women and a man's dog.", ["Person", "Person", "dog"]),
        ("wine glasses, a wine glass, glasses", ["wine glass"] * 3),
        ("buses with a bus", ["bus", "bus"]),
        ("a puppy, puppies and knives", ["dog", "dog", "knife"]),
        ("a toilet seat beside a seat", ["toilet", "chair"]),
        ("baby bears in a dog house", ["bear"]),
        ("a busy house, doggedly", []),
        ("", []),
    ],
)
def test_mentions(synonyms: Path, said: str, named: list[str]) -> None:
    assert Vocabulary(read_synonyms(str(synonyms)), PHRASES).mentions(said) == named


def test_vocabularies_that_are_wrong(tmp_path: Path) -> None:
    def said(content: str, phrases: dict[str, str] | None = None) -> str:
        (tmp_path / "words.txt").write_text(content)
        with pytest.raises(VlpipeError) as caught:
            Vocabulary(read_synonyms(str(tmp_path / "words.txt")), phrases)
        return str(caught.value).removeprefix(f"{tmp_path}/")

    assert said("cup, mug\ndog\nglass, Mug") == "words.txt line 3: 'Mug' is also a word for 'cup'"
    assert said("cup, --") == "words.txt line 1: '--' has no letter or digit"
    assert said("\n , \n") == "words.txt has no words"
    assert said("cup", {"tea cup": "cap"}).startswith("phrases: 'tea cup' stands for 'cap', which is not in")


def chair_rows(rows: Sequence[tuple[str, list[str], list[dict[str, Any]]]]) -> pa.Table:
    """(id, labels, texts)."""
    objects = [[{"box": [0, 0, 1, 1], "label": x, "attributes": []} for x in labels] for _, labels, _ in rows]
    return pa.table(
        {
            "id": [name for name, _, _ in rows],
            "texts": pa.array([texts for _, _, texts in rows], TEXTS),
            "objects": pa.array(objects, OBJECTS),
        }
    )


def test_chair_by_hand(tmp_path: Path, synonyms: Path) -> None:
    rows = chair_rows(
        [
            # 3 mentions, the bus is made up; the glass is known from a human caption
            (
                "a",
                ["dog", "dog"],
                [text("a puppy by a bus and a glass", "synth"), text("a wine glass", "human")],
            ),
            ("b", ["chair"], [text("a photo", "synth"), text("a bus", "web")]),  # names nothing
            ("c", [], [text("a bus, a bus", "synth", kept=False), text("a man", "synth")]),  # all made up
            ("d", ["dog"], [text("a dog", "human")]),  # no caption
        ]
    )
    said: list[str] = []
    data = dataset(tmp_path / "rows", rows, shard_rows=2)
    out = run_gather(Chair(synonyms=File(path=str(synonyms))), [data], tmp_path, said.append)
    assert [(r.id, r.why, r.detail) for r in out.rejects] == [("d", "no_caption", "no text of source synth")]
    assert figures(out) == {
        "chair_i": (4 / 6, 6),
        "chair_s": (3 / 4, 4),
        "object_recall": (2 / 3, 3),  # dog and glass of a, not the chair of b
    }
    assert items(out) == {("chair_s", name): name != "b" for name in ("a", "b", "c", "c#1")}
    need_means(out, ["chair_s"])
    assert said == ["4 captions; most often named and not there: bus (3), Person (1)"]
    alone = run_gather(Chair(synonyms=File(path=str(synonyms)), references=None), [data], tmp_path / "alone")
    assert figures(alone)["chair_i"] == (5 / 6, 6)  # the glass counts, too


def test_chair_of_captions_from_a_file(tmp_path: Path, synonyms: Path) -> None:
    rows = chair_rows([("a", ["dog"], [text("a bus", "synth")]), ("b", ["dog"], [])])
    data = dataset(tmp_path / "rows", rows)
    file = tmp_path / "captions.json"

    def found(captions: Any) -> GatherOutput:
        file.write_text(json.dumps(captions))
        stage = Chair(synonyms=File(path=str(synonyms)), captions=File(path=str(file)))
        return run_gather(stage, [data], tmp_path / "out")

    out = found({"tokenizer": "x", "captions": [{"id": "a", "caption": "a dog", "references": []}]})
    assert figures(out)["chair_s"] == (0, 1)
    assert [(r.id, r.why, r.detail) for r in out.rejects] == [("b", "no_caption", "it is not in `captions`")]
    with pytest.raises(VlpipeError, match=r"no row with a caption; the first of 2 rejected: it is not in"):
        found({"captions": []})
    with pytest.raises(VlpipeError, match=r"captions\[0\]: wanted an id and a caption, got \{'id': 'a'\}"):
        found({"captions": [{"id": "a"}]})
    with pytest.raises(VlpipeError, match=r"captions\[1\]: an earlier one has the id 'a'"):
        found({"captions": [{"id": "a", "caption": one} for one in ("a dog", "a bus")]})
    with pytest.raises(VlpipeError, match=r"captions\.json: wanted captions\.json of evaluate\.captions"):
        found([])


def test_chair_needs_a_line_for_each_label(tmp_path: Path, synonyms: Path) -> None:
    data = dataset(tmp_path / "rows", chair_rows([("a", ["zebra"], [text("a dog", "synth")])]))
    with pytest.raises(VlpipeError, match=r"row a has an object 'zebra', which is not in .*synonyms\.txt"):
        run_gather(Chair(synonyms=File(path=str(synonyms))), [data], tmp_path)
