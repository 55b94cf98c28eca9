"""Who knows the truth gets full marks; who knows only which words are true, and not of what, fails each swap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.files import File, ListFile, Weights
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import Job, SourceStage
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.batches import with_texts
from vlpipe.stages.demo.check_text import parse, right
from vlpipe.stages.demo.fine_grained.world import FineGrainedWorld
from vlpipe.stages.demo.scenes import Scene
from vlpipe.stages.fine_grained.chair import Chair
from vlpipe.stages.fine_grained.choice import ImageTextChoice
from vlpipe.stages.fine_grained.pope import Pope
from vlpipe.stages.fine_grained.scoring import Asked, ScoresTexts
from vlpipe.stages.fine_grained.winoground import Winoground
from vlpipe.stages.ground_truth.filter import scene_of
from vlpipe.stages.lists.coco_objects import CocoObjects
from vlpipe.stages.lists.pope import PopeQuestions
from vlpipe.stages.lists.sugarcrepe import SugarCrepe
from vlpipe.stages.lists.winoground import WinogroundPairs

Judge = Callable[[str, Scene], float]


def knows_all(text: str, scene: Scene) -> float:
    return 1.0 if right(text, scene) else -1.0


def knows_words(text: str, scene: Scene) -> float:
    """The share of what the text says that is true of any object."""
    true = {value for thing in scene.things for value in (thing.shape, thing.colour, thing.size)}
    true |= {word for thing in scene.things for word in thing.place} | {scene.ground}
    said = [value for claim in parse(text) or () for values in claim.said.values() for value in values]
    return sum(value in true for value in said) / len(said) - 0.999


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    step = FineGrainedWorld(num_images=30, num_pairs=10)
    return run_gather(step, [], tmp_path_factory.mktemp("world"), say=lambda _: None).artifacts


@pytest.fixture
def figures(world: Path, tmp_path: Path) -> Callable[..., dict[str, float]]:
    """figures(stage class, its rows, judge): the results of a stage whose scores are the judge's."""
    truth = {row["url"]: scene_of(row) for row in pq.read_table(world / "truth.parquet").to_pylist()}

    def run(cls: type[ScoresTexts], source: SourceStage, judge: Judge, **more: Any) -> dict[str, float]:
        rows = pa.concat_tables(source.rows()).to_pylist()

        @dataclass(frozen=True, kw_only=True)
        class Judging(cls):  # type: ignore[misc, valid-type]
            def scored(
                self, job: Job, texts_of: Callable[[Any], Sequence[str]], rejects: list[Reject]
            ) -> Iterator[tuple[Asked, list[float]]]:
                for row in rows:
                    texts = texts_of(row[cls.COLUMN.name])
                    scores = [judge(text, truth[row["url"]]) for text in texts]
                    yield Asked(row["id"], row[cls.COLUMN.name], texts), scores

        stage = Judging(model=Weights(path="nowhere"), **more)
        out = run_gather(stage, [], tmp_path / cls.__name__ / judge.__name__, say=lambda _: None)
        return {row["name"]: row["value"] for row in out.table.to_pylist()}

    return run


def listed(world: Path, name: str) -> ListFile:
    return ListFile(path=str(world / name))


def test_choices_and_pairs(world: Path, figures: Callable[..., dict[str, float]]) -> None:
    images = File(path=str(world / "images"))
    choices = SugarCrepe(tests=listed(world, "choices"), images=images)
    pairs = WinogroundPairs(examples=listed(world, "winoground.jsonl"), images=images, tag="tag")
    for cls, source in ((ImageTextChoice, choices), (Winoground, pairs)):
        assert set(figures(cls, source, knows_all).values()) == {1.0}
    words = figures(ImageTextChoice, choices, knows_words)
    assert words["choice/swap_attribute"] == words["choice/swap_relation"] == 0
    assert words["choice/replace_object"] == words["choice/replace_attribute"] == 1
    assert words["choice/replace_relation"] > 0.5  # another place may be made of the words of both
    assert set(figures(Winoground, pairs, knows_words).values()) == {0.0}


def test_questions(world: Path, figures: Callable[..., dict[str, float]]) -> None:
    source = PopeQuestions(questions=listed(world, "pope"), images=File(path=str(world / "images")))
    template = "there is {a} {object}"
    found = figures(Pope, source, knows_all, template=template)
    assert {value for name, value in found.items() if not name.startswith("yes_ratio")} == {1.0}
    assert {value for name, value in found.items() if name.startswith("yes_ratio")} == {0.5}
    words = figures(Pope, source, knows_words, template=template)
    assert words["accuracy/object_random"] == 1
    assert words["precision/attribute_recombined"] == words["auc/attribute_recombined"] == 0.5
    assert words["yes_ratio/attribute_recombined"] == words["recall/attribute_recombined"] == 1


def test_captions(world: Path, tmp_path: Path) -> None:
    source = CocoObjects(
        instances=(listed(world, "instances.json"),),
        captions=listed(world, "captions.json"),
        images=File(path=str(world / "images")),
    )
    rows = pa.concat_tables(source.rows())
    human = rows["texts"].to_pylist()

    def chair(captions: list[list[dict[str, Any]]], name: str) -> dict[str, float]:
        texts = [[{**one, "source": "synth"} for one in row] for row in captions]
        data = dataset(tmp_path / f"{name}_rows", with_texts(rows, texts))
        out = run_gather(Chair(synonyms=File(path=str(world / "synonyms.txt"))), [data], tmp_path / name)
        return {row["name"]: row["value"] for row in out.table.to_pylist()}

    own = chair(human, "own")
    assert own["chair_i"] == own["chair_s"] == 0
    assert 0.7 < own["object_recall"] < 1  # some captions name one object alone
    others = chair([*human[1:], human[0]], "others")
    assert others["chair_i"] > 0.3
    assert others["chair_s"] > 0.5
