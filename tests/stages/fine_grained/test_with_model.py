"""A tiny random BLIP through the stages, on what the demo world writes and the readers read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile, Weights
from vlpipe.pipeline.stage import GatherStage, SourceStage
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather, run_map
from vlpipe.stages.common.batches import with_texts
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.common.row import RESULTS, text
from vlpipe.stages.demo.fine_grained.world import FineGrainedWorld
from vlpipe.stages.fine_grained.chair import Chair
from vlpipe.stages.fine_grained.choice import ImageTextChoice
from vlpipe.stages.fine_grained.pope import Pope
from vlpipe.stages.fine_grained.winoground import Winoground
from vlpipe.stages.lists.coco_objects import CocoObjects
from vlpipe.stages.lists.pope import PopeQuestions
from vlpipe.stages.lists.sugarcrepe import CHOICES, SugarCrepe
from vlpipe.stages.lists.winoground import WinogroundPairs

NUM_IMAGES, NUM_PAIRS = 12, 8
SMALL: dict[str, Any] = {"batch_size": 16, "max_text_length": 24}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    step = FineGrainedWorld(num_images=NUM_IMAGES, num_pairs=NUM_PAIRS)
    return run_gather(step, [], tmp_path_factory.mktemp("world"), say=lambda _: None).artifacts


@pytest.fixture(scope="module")
def read(world: Path) -> Callable[[str], pa.Table]:
    """read(which): the rows of the world's files."""
    images = File(path=str(world / "images"))

    def listed(name: str) -> ListFile:
        return ListFile(path=str(world / name))

    sources: dict[str, SourceStage] = {
        "choices": SugarCrepe(tests=listed("choices"), images=images),
        "pairs": WinogroundPairs(examples=listed("winoground.jsonl"), images=images, tag="tag"),
        "questions": PopeQuestions(questions=listed("pope"), images=images),
        "objects": CocoObjects(
            instances=(listed("instances.json"),), captions=listed("captions.json"), images=images
        ),
    }

    def make(which: str) -> pa.Table:
        out = run_map(sources[which], pa.concat_tables(sources[which].rows()))
        assert not out.rejects
        return out.table

    return make


def evaluate(stage: GatherStage, table: pa.Table, folder: Path) -> tuple[dict[str, Any], GatherOutput]:
    out = run_gather(stage, [dataset(folder / "rows", table, shard_rows=7)], folder, say=lambda _: None)
    assert out.table.schema == RESULTS
    return {r["name"]: (r["value"], r["num_rows"]) for r in out.table.to_pylist()}, out


def slow_scores(weights: Weights) -> Callable[[str, bytes, str], float]:
    """One image and one text at a time."""
    model, tokenizer = Blip.load(weights.path).eval(), Tokenizer.load(weights.path)

    @torch.no_grad()
    def score(kind: str, image: bytes, words: str) -> float:
        tokens = model.encode_image(torch.from_numpy(load_pixels([image], 16)))
        ids, mask = tokenizer.encode([words], 24)
        if kind == "match":
            p = model.match_logits(ids, mask, tokens).double().softmax(1)[0]
            return float(p[1].log() - p[0].log())
        return float(model.image_features(tokens)[0] @ model.text_features(model.encode_text(ids, mask))[0])

    return score


@pytest.mark.parametrize("score", ["match", "similarity"])
def test_choices_equal_a_slow_reference(
    weights: Weights, read: Callable[[str], pa.Table], tmp_path: Path, score: Any
) -> None:
    table = read("choices").slice(0, 6)
    found, out = evaluate(ImageTextChoice(model=weights, score=score, **SMALL), table, tmp_path)
    slow = slow_scores(weights)
    wanted, close = {}, 0
    for row in table.to_pylist():
        for one in row["choices"]:
            gap = slow(score, row["image"], one["right"]) - slow(score, row["image"], one["wrong"])
            wanted[one["id"]] = gap > 0
            close += 0 < abs(gap) < 1e-5
    assert close == 0  # or the last bits would decide; ties are texts of unknown words
    values = pq.read_table(out.artifacts / "items.parquet").to_pylist()
    assert {v["item"]: v["value"] for v in values if v["metric"] == "choice"} == wanted
    assert found["choice"] == (pytest.approx(sum(wanted.values()) / len(wanted)), 30)
    assert {name: num for name, (_, num) in found.items() if "/" in name} == {
        f"choice/{kind}": 6
        for kind in (
            "replace_attribute",
            "replace_object",
            "replace_relation",
            "swap_attribute",
            "swap_relation",
        )
    }
    assert 0 < found["choice"][0] < 1


def test_pairs_equal_a_slow_reference(
    weights: Weights, read: Callable[[str], pa.Table], tmp_path: Path
) -> None:
    table = read("pairs")
    found, out = evaluate(Winoground(model=weights, **SMALL), table, tmp_path)
    slow, rows = slow_scores(weights), table.to_pylist()
    wanted = 0
    for zero, one in zip(rows[::2], rows[1::2], strict=True):
        c0, c1 = zero["pair"]["captions"]
        wanted += slow("match", zero["image"], c0) > slow("match", zero["image"], c1) and slow(
            "match", one["image"], c1
        ) > slow("match", one["image"], c0)
    assert found["text_score"] == (wanted / NUM_PAIRS, NUM_PAIRS)
    assert set(found) == {
        f"{side}_score{tag}"
        for side in ("text", "image", "group")
        for tag in ("", "/swap_attribute", "/swap_relation")
    }
    assert not out.rejects


def test_questions_and_captions_of_the_world(
    weights: Weights, read: Callable[[str], pa.Table], world: Path, tmp_path: Path
) -> None:
    table = read("questions")
    found, _ = evaluate(
        Pope(model=weights, template="there is {a} {object}", **SMALL), table, tmp_path / "pope"
    )
    assert len(found) == 6 * 7
    assert found["accuracy/object_random"][1] == found["accuracy/attribute_recombined"][1] == 4 * NUM_IMAGES
    slow = slow_scores(weights)
    asked = [(row["image"], q) for row in table.to_pylist() for q in row["questions"]]
    hits = [
        (slow("match", image, f"there is a {q['object']}") >= 0) == q["is_there"]
        for image, q in asked
        if q["kind"] == "object_random"
    ]
    assert found["accuracy/object_random"][0] == sum(hits) / len(hits)

    objects = read("objects")
    own = [[*row, text("a red disc and a hoop", "synth")] for row in objects["texts"].to_pylist()]
    captioned = with_texts(objects, own)
    chair, _ = evaluate(Chair(synonyms=File(path=str(world / "synonyms.txt"))), captioned, tmp_path / "chair")
    shapes = [{one["label"] for one in row} for row in objects["objects"].to_pylist()]
    made_up = [2 - len(some & {"circle", "ring"}) for some in shapes]
    assert chair["chair_i"] == (sum(made_up) / (2 * NUM_IMAGES), 2 * NUM_IMAGES)
    assert chair["chair_s"] == (sum(map(bool, made_up)) / NUM_IMAGES, NUM_IMAGES)


def test_unreadable_images_and_rows_without_tests_are_named(
    weights: Weights, image_rows: Callable[..., pa.Table], tmp_path: Path
) -> None:
    def with_choices(table: pa.Table, choices: list[Any]) -> pa.Table:
        return table.append_column(pa.field("choices", CHOICES), pa.array(choices, CHOICES))

    def tests(number: int) -> list[dict[str, str]]:
        return [{"id": f"swap/{number}", "kind": "swap", "right": "a red dog", "wrong": "a blue dog"}]

    rows = image_rows([[]] * 4)
    pictures = rows["image"].to_pylist()
    odd = image_rows([[]] * 4, [pictures[0], b"GIF89a", *pictures[2:]])
    stage = ImageTextChoice(model=weights, **SMALL)
    found, out = evaluate(stage, with_choices(odd, [tests(0), tests(1), [], None]), tmp_path / "odd")
    assert found["choice"][1] == 1
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [
        ("row1", "fault", "truncated"),
        ("row2", "filtered", "no_test"),
        ("row3", "filtered", "no_test"),
    ]
    with pytest.raises(
        VlpipeError, match=r"no readable image with a test in its column 'choices'; the first"
    ):
        evaluate(stage, with_choices(odd.slice(2), [[], []]), tmp_path / "none")
