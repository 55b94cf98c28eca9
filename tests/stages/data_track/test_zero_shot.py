from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather
from vlpipe.stages.common import model as models
from vlpipe.stages.common.row import RESULTS, text
from vlpipe.stages.data_track.zero_shot import Task, ZeroShot, class_vector, mean_per_class, place

Rows = Callable[..., pa.Table]
ANY = Weights(path="anywhere")
# Vectors of unit norm in a plane, as degrees
PROMPTS = {"a red": 0, "red thing": 40, "a green": 90, "green thing": 90, "a blue": 170, "blue thing": 130}
PICTURES = {(255, 0, 0): 10, (0, 255, 0): 60, (0, 0, 255): 150}


class Flat:
    """A model that knows PROMPTS and PICTURES of one colour."""

    image_size, is_on_gpu = 8, False

    def __init__(self) -> None:
        self.tokenizer, self.prompts = self, list[str]()

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[torch.Tensor, None]:
        self.prompts += texts
        return torch.tensor([PROMPTS[one] for one in texts]), None

    def embed_texts(self, degrees: torch.Tensor, mask: None) -> torch.Tensor:
        return torch.stack([torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))], 1)

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        strongest = pixels.mean((2, 3)).argmax(1).tolist()
        degrees = torch.tensor([list(PICTURES.values())[one] for one in strongest])
        return self.embed_texts(degrees, None)


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> Flat:
    found = Flat()
    monkeypatch.setattr(models, "load", lambda *args, **more: found)
    return found


def picture(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def rows_of(image_rows: Rows, captions: Sequence[Sequence[str]], colours: Sequence[int]) -> pa.Table:
    texts = [[text(one, "human") for one in several] for several in captions]
    return image_rows(texts, [picture(list(PICTURES)[one]) for one in colours])


def run(stage: ZeroShot, table: pa.Table, folder: Path) -> tuple[dict[str, tuple[float, int]], GatherOutput]:
    out = run_gather(stage, [dataset(folder / "rows", table, shard_rows=2)], folder)
    assert out.table.schema == RESULTS
    return {r["name"]: (r["value"], r["num_rows"]) for r in out.table.to_pylist()}, out


HUE = Task(classes={"red": ["red", "crimson"], "green": [], "blue": []}, templates=["a {}", "{} thing"])


def test_a_worked_case(flat: Flat, image_rows: Rows, tmp_path: Path) -> None:
    """Classes lie at 20, 90 and 150 degrees, so pictures at 10, 60 and 150 are taken for red, green and blue.

    The second green picture is said to be red: red has 1 of 2, green 1 of 1, blue 1 of 1.
    """
    captions = [
        ["A crimson wall"],
        ["green"],
        ["something red"],
        ["blue, very blue"],
        ["red and blue"],
        ["reddish"],
    ]
    table = rows_of(image_rows, captions, [0, 1, 1, 2, 0, 0])
    found, out = run(ZeroShot(model=ANY, tasks={"hue": HUE}, batch_size=16), table, tmp_path)
    assert found == {
        "top1/hue": (0.75, 4),
        "top1": (0.75, 4),
        "mean_per_class/hue": (pytest.approx(5 / 6), 4),
        "mean_per_class": (pytest.approx(5 / 6), 4),
    }
    assert [(r.id, r.why) for r in out.rejects] == [("row4", "no_class"), ("row5", "no_class")]
    items = pq.read_table(out.artifacts / "items.parquet").to_pylist()
    assert [(one["metric"], one["item"], one["value"]) for one in items] == [
        ("top1/hue", "row0", 1.0),
        ("top1/hue", "row1", 1.0),
        ("top1/hue", "row2", 0.0),
        ("top1/hue", "row3", 1.0),
    ]
    assert set(flat.prompts) == set(PROMPTS)


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts() -> None:
    prompts = np.array([[3.0, 0.0], [0.0, 0.5]])
    np.testing.assert_allclose(class_vector(prompts), [math.sqrt(0.5)] * 2)


def test_the_place_of_the_right_class() -> None:
    """Equal scores are ranked by the order of the classes."""
    assert place(np.array([0.1, 0.3, 0.2]), 2) == 1
    equal = np.array([0.5, 0.5, 0.1])
    assert [place(equal, label) for label in range(3)] == [0, 1, 2]


def test_each_class_counts_the_same() -> None:
    found = [(0, True), (0, False), (4, False), (0, True), (0, True)]
    assert mean_per_class(found) == pytest.approx((3 / 4 + 0) / 2)


def test_a_column_may_hold_the_classes(flat: Flat, image_rows: Rows, tmp_path: Path) -> None:
    """By name or by word; several tasks are averaged, and a row needs a class in one of them only."""
    table = rows_of(image_rows, [["red"], [], [], []], [0, 1, 2, 2])
    table = table.append_column("hue", pa.array(["0", "GREEN", "7", None]))
    column = Task(classes={"red": ["0"], "green": [], "blue": ["7"]}, templates=["a {}"], label="hue")
    tasks = {"said": HUE, "column": column}
    found, out = run(ZeroShot(model=ANY, tasks=tasks, batch_size=16), table, tmp_path)
    assert found["top1/said"] == (1.0, 1)
    assert found["top1/column"] == (1.0, 3)
    assert found["top1"] == (1.0, 4)
    assert [r.id for r in out.rejects] == ["row3"]


def test_top5_needs_more_than_five_classes(
    image_rows: Rows, tmp_path: Path, flat: Flat, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    monkeypatch.setattr(f"{__name__}.PROMPTS", {f"a {name}": 30 * k for k, name in enumerate(names)})
    task = Task(classes={name: [] for name in names}, templates=["a {}"])
    table = rows_of(image_rows, [["f"], ["e"]], [0, 0])  # at 10 degrees: f, at 150, is last and e is fifth
    found, _ = run(ZeroShot(model=ANY, tasks={"letter": task}, batch_size=16), table, tmp_path)
    assert (found["top1/letter"], found["top5/letter"]) == ((0.0, 2), (0.5, 2))


def test_what_cannot_be_a_task_is_said() -> None:
    def problems(**more: Any) -> list[str]:
        return ZeroShot(model=ANY, tasks={"t": Task(**{"classes": {"a": [], "b": []}, **more})}).preflight()

    assert problems() == []
    assert problems(classes={"a": []}) == ["tasks.t: classes: wanted at least 2, got ['a']"]
    assert problems(classes={"a": ["x"], "b": ["X"]}) == ["tasks.t: classes: 'x' says two classes"]
    assert problems(templates=["a photo"]) == ["tasks.t: templates: 'a photo' has no {}"]
    assert problems(templates=[]) == ["tasks.t: templates: wanted at least one"]
    assert problems(classes={"a": [""], "b": []}) == ["tasks.t: classes: a word is empty"]
    twice = {"label": "c", "classes": {"Cat": [], "cat": ["x"]}}
    assert problems(**twice)[0] == "tasks.t: classes: 'cat' is the name of two classes"
    other = {"label": "c", "classes": {"cat": ["kitten"], "kitten": ["lion"]}}
    assert problems(**other) == ["tasks.t: classes: 'kitten' is the name of one class and a word of another"]


def test_a_score_that_is_not_finite_is_no_hit() -> None:
    with pytest.raises(VlpipeError, match="not finite"):
        place(np.array([0.5, math.nan]), 0)
    assert ZeroShot(model=ANY, tasks={}).preflight() == ["tasks: wanted at least one"]


def test_a_label_that_is_no_class_and_a_column_that_is_not_there(
    flat: Flat, image_rows: Rows, tmp_path: Path
) -> None:
    table = rows_of(image_rows, [[]], [0])
    task = Task(classes={"red": [], "green": []}, templates=["a {}"], label="hue")
    stage = ZeroShot(model=ANY, tasks={"hue": task}, batch_size=16)
    with pytest.raises(SchemaError, match=r"tasks.hue: there is no column 'hue'"):
        stage.schema(table.schema)
    with pytest.raises(VlpipeError, match=r"column 'hue' has 'mauve', which is none of the classes"):
        run(stage, table.append_column("hue", pa.array(["mauve"])), tmp_path)
    captioned = rows_of(image_rows, [["a dog"]], [0])
    with pytest.raises(
        VlpipeError, match=r"tasks.hue: no readable image has one of the classes red, green, blue"
    ):
        run(ZeroShot(model=ANY, tasks={"hue": HUE}, batch_size=16), captioned, tmp_path / "other")


def test_a_model_on_disk(weights: Weights, image_rows: Rows, tmp_path: Path) -> None:
    """The figures are those of its own embeddings, one prompt at a time."""
    words = ["circle", "square", "triangle", "star", "dogs", "left"]
    table = image_rows([[text(f"a {words[i % 6]}", "human")] for i in range(12)])
    task = Task(classes={word: [] for word in words}, templates=["a {}", "the red {}"])
    stage = ZeroShot(model=weights, tasks={"t": task}, batch_size=16, max_text_length=12)
    found, _ = run(stage, table, tmp_path)
    model = models.load(weights, 12)
    from vlpipe.stages.common.pixels import load_pixels

    images = torch.cat(
        [model.embed_images(torch.from_numpy(load_pixels([d], 16))) for d in table["image"].to_pylist()]
    )
    classes = []
    for word in words:
        prompts = [
            model.embed_texts(*model.tokenizer.encode([p], 12))[0] for p in (f"a {word}", f"the red {word}")
        ]
        mean = torch.stack(prompts).mean(0)
        classes.append(mean / mean.norm())
    order = (images @ torch.stack(classes).T).argsort(1, descending=True)
    right = torch.arange(12)[:, None] % 6
    for k in (1, 5):
        expected = (order[:, :k] == right).any(1).float().mean().item()
        assert found[f"top{k}/t"][0] == pytest.approx(expected)
    assert 0 < found["top5/t"][0] < 1
