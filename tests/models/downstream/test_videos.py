"""Captions of videos: what a written token depends on, and the score of a model's own captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vlpipe.models import folder
from vlpipe.models.downstream.videos import VideoWriter
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.downstream.video_captions import VideoCaptions
from vlpipe.stages.evaluate.caption_scores import caption_scores
from vlpipe.stages.features.s3d import features_type

SIZES: dict[str, Any] = {
    "feat_dim": 6,
    "width": 24,
    "heads": 2,
    "text_layers": 1,
    "video_layers": 1,
    "cross_layers": 1,
    "decoder_layers": 1,
    "max_text_length": 12,
    "max_frames": 8,
    "dropout": 0.0,
    "init_std": 0.5,
}
BASE = {"use": "univl:UniVl", "vocab_size": 40, **SIZES}


def batch(ids: torch.Tensor, frames: torch.Tensor) -> Batch:
    seen = torch.ones(frames.shape[:3], dtype=torch.bool)
    seen[1, 0, 3:] = False
    text = Stream(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch({"text": text, "video": Stream(frames, seen)}, torch.arange(2))


def test_a_written_token_sees_those_before_it_and_the_video() -> None:
    torch.manual_seed(0)
    model = VideoWriter(base=BASE).eval()
    ids, frames = torch.randint(1, 40, (2, 6)), torch.randn(2, 1, 5, 6)
    before = Outputs(model, batch(ids, frames)).decoder_hidden.detach()
    assert before.shape == (2, 6, 24)
    for place in range(1, 6):
        other = ids.clone()
        other[0, place] = other[0, place] % 39 + 1
        changed = (Outputs(model, batch(other, frames)).decoder_hidden != before).any(-1)
        assert changed[0].tolist() == [at >= place for at in range(6)]
        assert not changed[1].any()
    other = frames.clone()
    other[1, 0, 4] += 1  # padding
    torch.testing.assert_close(Outputs(model, batch(ids, other)).decoder_hidden, before)
    other[1, 0, 2] += 1
    changed = (Outputs(model, batch(ids, other)).decoder_hidden != before).any(-1)
    assert changed.tolist() == [[False] * 6, [True] * 6]


def test_a_base_without_videos_is_refused() -> None:
    with pytest.raises(ValueError, match="base: Gpt writes no texts about videos"):
        VideoWriter(
            base={
                "use": "gpt:Gpt",
                "vocab_size": 9,
                "width": 8,
                "layers": 1,
                "heads": 1,
                "start": 1,
                "end": 2,
            }
        )


def test_a_models_own_captions_get_full_marks(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a red dog runs on two stars"] * 4, 80)
    torch.manual_seed(0)
    base = {**BASE, "vocab_size": tokenizer.vocab_size}
    folder.save(VideoWriter(base=base), tmp_path / "model")
    tokenizer.save(tmp_path / "model" / "tokenizer")
    schema = pa.schema([("id", pa.string()), ("texts", TEXTS), heavy("frame_feats", features_type(6))])
    rng = np.random.default_rng(0)

    def rows(texts: list[list[str]]) -> pa.Table:
        made = [
            {
                "id": f"r{k}",
                "texts": [text(one, "human") for one in several],
                "frame_feats": [
                    {
                        "start_s": float(n),
                        "end_s": n + 1.0,
                        "feat": rng.normal(0, 1 + k, 6).astype(np.float16),
                    }
                    for n in range(3)
                ],
            }
            for k, several in enumerate(texts)
        ]
        return pa.Table.from_pylist(made, schema)

    table = rows([["a dog", "two dogs"], ["a star"], ["a red star"], ["dogs"]])
    stage = VideoCaptions(
        model=Weights(path=str(tmp_path / "model")),
        streams={"video": {"use": "windows:FrameWindows"}},
        max_length=5,
        batch_size=3,
    )
    out = run_gather(stage, [dataset(tmp_path / "rows", table)], tmp_path / "out")
    written = json.loads((out.artifacts / "captions.json").read_text())["captions"]
    captions, wanted = [one["caption"] for one in written], [one["references"] for one in written]
    assert wanted == [["a dog", "two dogs"], ["a star"], ["a red star"], ["dogs"]]
    assert len(set(captions)) > 1
    found = {row["name"]: (row["value"], row["num_rows"]) for row in out.table.to_pylist()}
    scores, each = caption_scores(captions, wanted)
    assert found["cider/true"] == (pytest.approx(scores["cider"]), 4)
    assert found["bleu@4/true"] == (pytest.approx(scores["bleu@4"]), 4)
    items = pq.read_table(out.artifacts / "items.parquet").to_pylist()
    assert [one["value"] for one in items] == pytest.approx(list(each))
    feats = table["frame_feats"].to_pylist()
    own = pa.Table.from_pylist(
        [
            {**row, "texts": [text(said, "human")]}
            for row, said in zip(table.to_pylist(), captions, strict=True)
        ],
        schema,
    )
    assert own["frame_feats"].to_pylist() == feats
    out = run_gather(stage, [dataset(tmp_path / "own", own)], tmp_path / "again")
    found = {row["name"]: (row["value"], row["num_rows"]) for row in out.table.to_pylist()}
    assert found["rouge_l/true"] == (pytest.approx(1), 4)
    assert found["rouge_l/swapped"][0] < 1
