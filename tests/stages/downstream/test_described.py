"""Captions of images that a model reads by any stream: what is written, its scores, and the file for servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from vlpipe.models.interface.capabilities import TextRules
from vlpipe.models.interface.model import Model
from vlpipe.models.tokenization.word_list import ROLES, pipeline
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather
from vlpipe.stages.classification.labels import LABEL
from vlpipe.stages.common import model as common_model
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.downstream.described import DescribedImages
from vlpipe.stages.evaluate.caption_scores import caption_scores, more_scores

pytest.importorskip("pycocoevalcap")
TOKENIZER = Tokenizer(pipeline(["a", "red", "blue", "ring", "box", "end", "start"], lower=True), ROLES)
SAID = ["a red ring", "a blue box", "a blue ring", "a red ring"]
REFERENCES = [["a red ring", "one red ring"], ["a blue box"], ["a red ring"], ["a red box", "red ring"]]


class Says(Model):
    """Writes the caption whose number in SAID is the row's label."""

    STREAMS = {"label": "label:Label", "text": "text:Text"}  # noqa: RUF012

    def streams(self) -> dict[str, dict[str, Any]]:
        return {"label": {"use": "label:Label", "num_classes": 4}, "text": {"use": "text:Text"}}

    def image_tokens(self, out: Any) -> Tensor:
        words = [[*TOKENIZER.ids(one), *TOKENIZER.ids("end")] for one in SAID]
        return torch.tensor(words, dtype=torch.float)[out.stream("label").data]

    @property
    def text_rules(self) -> TextRules:
        return TextRules(TOKENIZER.ids("start")[0], TOKENIZER.ids("end")[0], [], 10)

    def decoder_hidden(self, out: Any) -> Tensor:
        raise AssertionError("nothing is learned here")

    def start_text(self, images: Tensor, room: int, repeats: int = 1) -> Cache:
        return Cache(images.repeat_interleave(repeats, 0))

    def step_text(self, ids: Tensor, cache: Cache) -> Tensor:
        at = cache.at
        cache.at += ids.shape[1]
        return torch.stack([cache.words[:, min(k, 3)] for k in range(at, cache.at)], dim=1)[..., None]

    def predict(self, hidden: Tensor) -> Tensor:
        return 20.0 * torch.nn.functional.one_hot(hidden[..., 0].long(), TOKENIZER.vocab_size)


class Cache:
    def __init__(self, words: Tensor) -> None:
        self.words, self.at = words, 0

    def select(self, rows: Tensor) -> None:
        self.words = self.words[rows]


def described(
    folder: Path, monkeypatch: pytest.MonkeyPatch, numbers: list[int | None] | None = None
) -> GatherOutput:
    loaded = common_model.Loaded(Says(), TOKENIZER, torch.device("cpu"))
    monkeypatch.setattr(common_model, "load", lambda *_, **__: loaded)
    columns = {
        "id": pa.array(list("wxyz")),
        "texts": pa.array([[text(t, "human") for t in some] for some in REFERENCES], TEXTS),
        "label": pa.array(range(4), LABEL.type),
    }
    if numbers is not None:
        columns["image_number"] = pa.array(numbers, pa.int64())
    stage = DescribedImages(model=Weights(path="x"), batch_size=3, max_length=6)
    return run_gather(stage, [dataset(folder / "in", pa.table(columns))], folder / "out")


def test_captions_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = described(tmp_path, monkeypatch)
    found = {row["name"]: row["value"] for row in out.table.to_pylist()}
    scores, _ = caption_scores(SAID, REFERENCES)
    others, _ = caption_scores(SAID[2:] + SAID[:2], REFERENCES)
    wanted = {
        **scores,
        "rouge_l": more_scores("rouge_l", SAID, REFERENCES)[0],
        "swapped/cider": others["cider"],
    }
    assert found == pytest.approx(wanted)
    written = json.loads(Path(out.artifacts, "captions.json").read_text())["captions"]
    assert [(one["id"], one["caption"]) for one in written] == list(zip("wxyz", SAID, strict=True))
    assert not Path(out.artifacts, "results.json").exists()


def test_the_file_for_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = described(tmp_path, monkeypatch, [7, 5, 9, 4])
    results = json.loads(Path(out.artifacts, "results.json").read_text())
    assert results == [{"image_id": n, "caption": c} for n, c in zip([7, 5, 9, 4], SAID, strict=True)]


@pytest.mark.parametrize(
    ("numbers", "wrong"),
    [
        ([1, None, 2, 3], "row x has no image_number"),
        ([1, 2, 3, 2], "row z has the image_number 2, as another row has"),
    ],
)
def test_servers_want_one_caption_of_each_image(
    numbers: list[int | None], wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VlpipeError, match=wrong):
        described(tmp_path, monkeypatch, numbers)


def test_parameters_are_checked() -> None:
    stage = DescribedImages(model=Weights(path="x"), min_length=5, max_length=3)
    assert stage.preflight() == ["min_length must be at most max_length, got 5 and 3"]
