"""Documents of narration, segments of documents by hand, and the figures of a model that knows nothing."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.models import folder
from vlpipe.models.systems.text.bert import Bert
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import LISTED, text
from vlpipe.stages.loading.corruptors.mismatch_second import MismatchSecond
from vlpipe.stages.loading.makers.base import Maker
from vlpipe.stages.loading.makers.tasks.segments import Segments
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.text_tasks.documents import NarrationDocuments
from vlpipe.stages.text_tasks.pretraining import Pretraining, entropy
from vlpipe.stages.video.rows import VIDEOS

SENTENCES = ["a b", "c d e", "f", "g h", "i j k l"]


def cue(start_s: float, words: str, source: str = "auto") -> dict[str, Any]:
    return {"start_s": start_s, "end_s": start_s + 1, "text": words, "source": source, "lang": "en"}


def videos(*cues: list[dict[str, Any]]) -> pa.Table:
    rows = [
        {"id": f"v{k}", "url": f"v{k}.mp4", "video": f"v{k}.mp4", "duration_s": 60.0, "cues": one}
        for k, one in enumerate(cues)
    ]
    return pa.Table.from_pylist(rows, VIDEOS)


def test_a_document_is_the_sentences_of_a_video_in_their_order() -> None:
    spoken = [cue(9, "then it stops"), cue(0, "the ball rolls"), cue(4, "  ")]
    table = videos(spoken, [cue(0, "alone")], [], [cue(0, "one", "manual"), cue(5, "two", "manual")])
    out = run_map(NarrationDocuments(), table)
    assert out.table.schema == LISTED
    assert out.table["id"].to_pylist() == ["v0", "v3"]
    assert out.table["texts"].to_pylist() == [
        [text("the ball rolls", "asr"), text("then it stops", "asr")],
        [text("one", "human"), text("two", "human")],
    ]
    assert [(r.id, r.why) for r in out.rejects] == [("v1", "short_document"), ("v2", "no_cues")]
    assert out.counts == {"cues:no_text": 1}
    longer = run_map(NarrationDocuments(min_sentences=1), table)
    assert longer.table["id"].to_pylist() == ["v0", "v1", "v3"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(SENTENCES)] * 3, 60)


def row(number: int, sentences: list[str]) -> Row:
    return Row(f"row{number}", number, sentences, {})


def test_segments_are_what_follows_up_to_the_target(tokenizer: Tokenizer) -> None:
    """Each letter is a token. 7 tokens of room hold sentences 0 to 3 (2 + 3 + 1 + 2 = 8, the first sum of 7 or more)."""
    maker = Segments(tokenizer=tokenizer, max_length=10, short_rate=0.0)
    cuts = [maker.cut(SENTENCES, 0, np.random.default_rng(k)) for k in range(60)]
    assert all([*a, *b] == SENTENCES[:4] for a, b in cuts)
    assert Counter(len(a) for a, _ in cuts).keys() == {1, 2, 3}
    assert maker.cut(SENTENCES, 4, np.random.default_rng(0)) == (["g h"], ["i j k l"])
    item = maker(row(3, SENTENCES), "i j k l", np.random.default_rng(0))
    a, b = tokenizer.ids("g h"), tokenizer.ids("i j k l")
    assert item["data"].tolist() == [tokenizer.start, *a, tokenizer.end, *b, tokenizer.end]
    assert item["extra/segment"].tolist() == [0] * 4 + [1] * 5
    with pytest.raises(VlpipeError, match="row row0 is a document of one sentence, wanted at least two"):
        maker(row(0, ["alone"]), "alone", np.random.default_rng(0))


def test_some_segments_are_short(tokenizer: Tokenizer) -> None:
    """All targets are drawn from 2 to 7, so each number of sentences from two on comes up; by default, in one of ten."""
    maker = Segments(tokenizer=tokenizer, max_length=10, short_rate=1.0)
    lengths = [sum(map(len, maker.cut(SENTENCES, 0, np.random.default_rng(k)))) for k in range(200)]
    assert set(lengths) == {2, 3, 4}
    usual = Segments(tokenizer=tokenizer, max_length=10)
    drawn = [sum(map(len, usual.cut(SENTENCES, 0, np.random.default_rng(k)))) for k in range(1000)]
    # shorter than 4 sentences: of the targets 2 to 7, those up to 6
    assert abs(sum(n < 4 for n in drawn) / 1000 - 0.1 * 5 / 6) < 4 * (0.083 * 0.917 / 1000) ** 0.5


def test_a_wrong_second_segment_is_another_document_s(tokenizer: Tokenizer) -> None:
    maker = Segments(tokenizer=tokenizer, max_length=20)
    makers: dict[str, Maker] = {"text": maker}
    documents = [["a b", "c d"], ["e f", "g h"], ["i j", "k l"]]
    samples = [{"text": maker(row(k, d), d[0], np.random.default_rng(k))} for k, d in enumerate(documents)]
    changed = MismatchSecond(rate=1.0)(samples, lambda k: np.random.default_rng(k), makers)
    for k, sample in enumerate(changed):
        item = sample["text"]
        second = tokenizer.decode(item["data"][item["extra/segment"] == 1])
        assert item["target/match"] == 0
        assert second in {d[1] for n, d in enumerate(documents) if n != k}
        assert tokenizer.decode(item["data"][item["extra/segment"] == 0]) == documents[k][0]


def test_entropy() -> None:
    assert entropy({"a": 2, "b": 2}) == pytest.approx(math.log(2))
    assert entropy({1: 5, 2: 0}) == 0
    assert entropy({1: 3, 2: 1}) == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))


def test_figures_of_a_model_that_knows_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A model of zeros gives all words one probability and always says no; so its figures are known."""
    model = Bert(vocab_size=tokenizer.vocab_size, width=8, layers=1, heads=2, max_text_length=16)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    model.match_head.bias.data[0] = 1.0
    folder.save(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model" / "tokenizer")
    documents = [[f"{a} {b}", f"{b} {c}"] for a in "abcd" for b in "efgh" for c in "ijkl"]
    rows = [{"id": f"r{k}", "url": "", "texts": [text(t, "asr") for t in d]} for k, d in enumerate(documents)]
    stage = Pretraining(
        model=Weights(path=str(tmp_path / "model")),
        streams={"text": {"use": "tasks.segments:Segments", "max_length": 12}},
        batch_size=32,
    )
    out = run_gather(
        stage, [dataset(tmp_path / "rows", pa.Table.from_pylist(rows, LISTED))], tmp_path / "out"
    )
    found = {r["name"]: (r["value"], r["num_rows"]) for r in out.table.to_pylist()}
    assert found["nats"][0] == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-5)
    assert found["top1"][0] < 0.2
    assert 0 < found["top1_prior"][0] < 0.3
    assert 2.0 < found["unigram_nats"][0] <= math.log(12)
    pairs = found["next_sentence"][1]
    assert pairs == 128
    assert abs(found["next_sentence"][0] - 0.5) < 4 * (0.25 / pairs) ** 0.5  # half of the pairs are wrong
    assert found["next_sentence_prior"][0] == max(found["next_sentence"][0], 1 - found["next_sentence"][0])
    big = Pretraining(model=stage.model, streams=stage.streams, batch_size=500)
    given = dataset(tmp_path / "again", pa.Table.from_pylist(rows, LISTED))
    with pytest.raises(VlpipeError, match="do not fill a batch of 500"):
        run_gather(big, [given], tmp_path / "big")
