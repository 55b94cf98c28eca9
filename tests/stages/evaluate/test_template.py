"""Words in a template: hits worked by hand, words of several tokens, what is not asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from vlpipe.models.interface.model import Model
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common import model as common_model
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.evaluate.video.template import TemplateWords, figures

VERBS, OBJECTS = ["cut", "stir", "peel"], ["egg", "onion"]
SLOTS = {"verb": VERBS, "object": OBJECTS}
TEMPLATE = "now [] the []"
NOTHING = 99  # a code that stands for no word


def test_hits_by_hand() -> None:
    """Rows: found; second of three; a tie with a wrong word; two true words, one of them the best; not asked."""
    scores = np.array([[3, 1, 2], [3, 2, 1], [2, 2, 0], [0, 5, 9], [1, 2, 3]], np.float32)
    true = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0]], bool)
    rows = figures("verb", {"paired": scores, "alone": np.zeros((5, 3), np.float32)}, true)
    found = {r["name"]: r["value"] for r in rows}
    assert {r["num_rows"] for r in rows} == {4}
    assert found["verb/paired/top1"] == 0.5
    assert found["verb/paired/top5"] == 1
    assert found["verb/alone/top1"] == 0  # all are equal
    assert found["verb/common/top1"] == 0.75  # the first word is true of three of four
    assert found["verb/gain/alone"] == pytest.approx(2 / (np.std([1, 0, 0, 1], ddof=1) * 2))


class Sees(Model):
    """Predicts at every place the tokens that a clip's codes name, most likely first; without a clip, all alike."""

    STREAMS = {"text": "text:Text", "video": "codes:Codes"}  # noqa: RUF012

    mask: int

    def __init__(self, *, vocab_size: int = 0) -> None:
        super().__init__()

    def streams(self) -> dict[str, dict[str, Any]]:
        specs = super().streams()
        return {**specs, "video": {**specs["video"], "num_codes": NOTHING + 1, "max_length": 9}}

    def word_hidden(self, out: Any) -> Tensor:
        ids = out.stream("text").data
        logits = torch.zeros(len(ids), NOTHING + 1)
        if "video" in out.batch.streams:
            codes = out.stream("video").data
            logits = logits.scatter(1, codes, torch.arange(codes.shape[1], 0.0, -1.0).expand(codes.shape))
        masked = (ids == self.mask)[..., None]
        return logits[:, None, : self.config.vocab_size].expand(-1, ids.shape[1], -1) * masked

    def predict_words(self, hidden: Tensor) -> Tensor:
        return hidden


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    """`onion` is two tokens."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "now", "the", *VERBS, "egg", "oni", "##on"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
    return Tokenizer.load(tmp_path)


def test_a_template_is_filled(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Sees(vocab_size=tokenizer.vocab_size)
    model.mask = tokenizer.mask
    loaded = common_model.Loaded(model, tokenizer, torch.device("cpu"))
    monkeypatch.setattr(common_model, "load", lambda *_, **__: loaded)
    one = {word: tokenizer.ids(word) for word in (*VERBS, *OBJECTS)}
    assert len(one["onion"]) == 2
    shown = [
        one["cut"] + one["onion"],
        one["stir"] + one["egg"],
        one["stir"] + one["egg"],
        one["peel"] + one["egg"],
    ]
    said = ["we cut an onion", "stir the egg", "cut the egg", "nothing of that"]
    longest = max(map(len, shown))
    table = pa.table(
        {
            "id": list("abcd"),
            "parent": ["v"] * 4,
            "texts": pa.array([[text(t, "human")] for t in said], TEXTS),
            "video_tokens": pa.array(
                [ids + [NOTHING] * (longest - len(ids)) for ids in shown], pa.list_(pa.int32())
            ),
        }
    )
    stage = TemplateWords(model=Weights(path="x"), template=TEMPLATE, slots=SLOTS, batch_size=3)
    assert stage.preflight() == []
    rows = run_gather(stage, [dataset(tmp_path / "in", table)], tmp_path / "out").table.to_pylist()
    found = {row["name"]: (row["value"], row["num_rows"]) for row in rows}
    assert found["verb/paired/top1"] == (pytest.approx(2 / 3), 3)
    assert found["verb/shuffled/top1"] == (pytest.approx(1 / 3), 3)  # stir, peel, cut for cut, stir, cut
    assert found["object/paired/top1"] == (1, 3)
    assert found["object/alone/top1"] == (0, 3)
    assert found["object/common/top1"] == (pytest.approx(2 / 3), 3)


def test_blanks_and_slots_belong_together(tokenizer: Tokenizer) -> None:
    stage = TemplateWords(model=Weights(path="x"), template=TEMPLATE, slots=SLOTS)
    mask, (now,), (the,) = tokenizer.mask, tokenizer.ids("now"), tokenizer.ids("the")
    ids = [tokenizer.start, now, mask, the, mask, mask, tokenizer.end]
    assert stage._masked(tokenizer, "object", 2) == (ids, 4)
    assert stage._masked(tokenizer, "verb", 1) == ([*ids[:5], tokenizer.end], 2)
    wrong = TemplateWords(model=Weights(path="x"), template="now []", slots=SLOTS)
    assert wrong.preflight()[0].startswith("template: wanted [] as a word for each of the slots verb, object")
    few = TemplateWords(model=Weights(path="x"), template="now []", slots={"verb": ["cut", "cut"]})
    assert few.preflight() == [
        "slots.verb: wanted at least 2 different words of one word each, got ['cut', 'cut']"
    ]
