"""Scores of answers: by hand from written answers, and of heads that training steps finetuned from a pretrained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.models import folder
from vlpipe.models.systems.image_text.vilt import Vilt
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.downstream.answered import AnswerScores, best_constant
from vlpipe.stages.downstream.examples import Example, swapped
from vlpipe.stages.lists.vqa import ANSWERS, left_out
from vlpipe.stages.loading.makers.downstream.soft_answers import SoftAnswers
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.train.recipe import InitPart
from vlpipe.stages.train.train import Train

SIZES: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "width": 32,
    "layers": 1,
    "heads": 2,
    "max_text_length": 12,
}
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("texts", TEXTS),
        ("answers", ANSWERS),
        heavy("image", pa.binary()),
        heavy("second_image", pa.binary()),
    ]
)
QUESTION = "is it red"


@pytest.mark.parametrize(("num", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_is_the_mean_over_nine_of_ten(num: int, score: float) -> None:
    """By hand: with 2 of 10, leaving out one of the two leaves 1 (1/3), any of the other eight 2 (2/3)."""
    assert left_out(num, 10) == pytest.approx(score)
    one_by_one = [min(1, (num - (k < num)) / 3) for k in range(10)]
    assert left_out(num, 10) == pytest.approx(np.mean(one_by_one))


def test_soft_answers_are_scores_by_label() -> None:
    answers = [
        {"question": QUESTION, "label": 2, "score": 0.3},
        {"question": QUESTION, "label": 0, "score": None},
    ]
    row = Row("r", 0, [QUESTION, "why"], {"answers": pa.scalar(answers, ANSWERS)})
    maker, rng = SoftAnswers(num_answers=4), np.random.default_rng(0)
    np.testing.assert_array_equal(maker(row, QUESTION, rng)["data"], np.array([1, 0, 0.3, 0], np.float32))
    assert not maker(row, "why", rng)["data"].any()
    with pytest.raises(VlpipeError, match="labels from 0 to 2, wanted labels below num_answers 2"):
        SoftAnswers(num_answers=2)(row, QUESTION, rng)


def test_the_best_constant_answer() -> None:
    assert best_constant([{0: 1.0, 1: 0.3}, {1: 0.9}, {1: 0.3}, {0: 0.3}]) == pytest.approx(1.5)


def test_images_are_swapped_with_those_of_another_picture() -> None:
    import torch

    from vlpipe.models.interface.batch import Batch, Stream

    rows = [Row(str(k), k, [], {}) for k in (5, 5, 7)]
    names = ("text", "image", "second_image", "answer")
    batch = Batch({name: Stream(torch.tensor([0, 1, 2])) for name in names}, torch.arange(3))
    other, places = swapped([Example(row, "", 0) for row in rows], batch)
    assert places == [0, 1, 2]
    assert other.streams["image"].data.tolist() == other.streams["second_image"].data.tolist() == [2, 2, 0]
    assert other.streams["text"].data.tolist() == other.streams["answer"].data.tolist() == [0, 1, 2]
    assert swapped([Example(row, "", 0) for row in rows[:2]], batch.rows(slice(0, 2)))[1] == []


@pytest.fixture
def pretrained(tmp_path: Path) -> Weights:
    tokenizer = Tokenizer.train([f"{QUESTION} both"] * 3, 60)
    folder.save(Vilt(vocab_size=tokenizer.vocab_size, init_std=0.1, **SIZES), tmp_path / "vilt")
    tokenizer.save(tmp_path / "vilt" / "tokenizer")
    return Weights(path=str(tmp_path / "vilt"))


@pytest.fixture
def asked(tmp_path: Path, plain: Callable[[tuple[int, int, int]], bytes]) -> Callable[..., Dataset]:
    def make(num_images: int) -> Dataset:
        """Questions whether pictures are red: the first, or with two both."""
        rows = []
        for k in range(32):
            red = [k % 2 == 0, num_images == 1 or k // 2 % 2 == 0]
            answers = [{"question": QUESTION, "label": int(all(red)), "score": 1.0}]
            images = [plain((200, 20, 20 + k) if one else (20, 200, 20 + k)) for one in red]
            rows.append({"id": f"r{k}", "texts": [text(QUESTION, "human")], "answers": answers})
            rows[-1] |= {"image": images[0], "second_image": images[1]}
        return dataset(tmp_path / "rows", pa.Table.from_pylist(rows, SCHEMA), name="rows")

    return make


@pytest.fixture
def plain() -> Callable[[tuple[int, int, int]], bytes]:
    import io

    from PIL import Image

    def make(colour: tuple[int, int, int]) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (16, 16), colour).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [1, 2])
def test_a_finetuned_model_answers_from_its_images(
    num_images: int, asked: Callable[..., Dataset], pretrained: Weights, tmp_path: Path
) -> None:
    data = asked(num_images)
    found = {}
    for blind in (False, True):
        recipe = Train(
            model={
                "use": "vlpipe.models.downstream.classifier:JointClassifier",
                "base": {"use": "vilt:Vilt", "init_std": 0.1, **SIZES},
                "num_answers": 2,
                "num_images": num_images,
                "blind": blind,
            },
            tokenizer=File(path=f"{pretrained.path}/tokenizer"),
            init_parts=[InitPart(weights=pretrained, into="base")],
            objectives=["answer:Answer"],
            batch_size=16,
            steps=40,
            lr=5e-3,
            loader_threads=1,
        )
        assert recipe.preflight() == []
        trained = run_gather(recipe, [data], tmp_path / f"trained{blind}")
        stage = AnswerScores(model=Weights(path=trained.artifacts), batch_size=16)
        out = run_gather(stage, [data], tmp_path / f"scores{blind}")
        figures = {row["name"]: row["value"] for row in out.table.to_pylist()}
        items = pq.read_table(out.artifacts / "items.parquet").to_pylist()
        assert {one["item"] for one in items} == {f"r{k}#0" for k in range(32)}
        found[blind] = figures
    right = 0.5 if num_images == 1 else 0.75
    assert found[False]["accuracy/true"] == 1.0
    assert found[False]["accuracy/prior"] == found[True]["accuracy/prior"] == right
    assert found[True]["accuracy/true"] == found[True]["accuracy/swapped"] <= right
    if num_images == 1:
        assert found[False]["accuracy/swapped"] == 0.0  # rows take turns
