"""Features in context: the states of the model's own forward pass, in runs of its positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.models.small.cbt import SYSTEM
from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.video.cbt import Cbt
from vlpipe.models.systems.video.videobert import VideoBert
from vlpipe.models.tokenization.word_list import ROLES, pipeline
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.features.context import ContextFeatures
from vlpipe.stages.features.s3d import features_type

DIM = 10  # of the small model's features; it has 4 positions


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    torch.manual_seed(0)
    config = {**vars(SYSTEM.make().config), "init_std": 0.2}
    folder.save(Cbt(**config), tmp_path / "model")
    Tokenizer(pipeline(["a", "b"], lower=True), ROLES).save(tmp_path / "model" / "tokenizer")
    return Weights(path=str(tmp_path / "model"))


def table(windows: list[np.ndarray]) -> pa.Table:
    rows = [[{"start_s": k, "end_s": k + 1, "feat": v} for k, v in enumerate(one)] for one in windows]
    schema = pa.schema([("id", pa.string()), heavy("frame_feats", features_type(DIM))])
    ids = [str(n) for n in range(len(rows))]
    return pa.table([ids, pa.array(rows, features_type(DIM))], schema=schema)


def test_states_are_the_models(weights: Weights) -> None:
    draw = np.random.default_rng(0)
    feats = [draw.normal(size=(n, DIM)).astype(np.float16) for n in (3, 6, 0, 1)]
    out = run_map(ContextFeatures(model=weights, column="frame_feats", batch_size=2), table(feats))
    assert [(r.id, r.why) for r in out.rejects] == [("2", "no_window")]
    model = folder.load(weights.path).eval()
    for row, one in zip(out.table.to_pylist(), [feats[0], feats[1], feats[3]], strict=True):
        runs = [one[at : at + 4] for at in range(0, len(one), 4)]
        streams = [Stream(torch.from_numpy(run.astype(np.float32))[None, None]) for run in runs]
        wanted = [
            Outputs(model, Batch({"video": s}, torch.arange(1)), grad=False).video_tokens for s in streams
        ]
        found = np.array([entry["feat"] for entry in row["context_feats"]], np.float32)
        np.testing.assert_allclose(found, torch.cat(wanted, 1)[0].numpy(), atol=2e-3)
        assert [entry["start_s"] for entry in row["context_feats"]] == list(range(len(one)))


def test_a_window_depends_on_those_around_it(weights: Weights) -> None:
    draw = np.random.default_rng(0)
    one = draw.normal(size=(4, DIM)).astype(np.float16)
    other = np.concatenate([one[:1], one[:0:-1]])
    out = run_map(ContextFeatures(model=weights, column="frame_feats"), table([one, other]))
    first = [row["context_feats"][0]["feat"] for row in out.table.to_pylist()]
    assert np.abs(np.array(first[0], float) - np.array(first[1], float)).max() > 0.01


def test_the_width_must_be_known(weights: Weights) -> None:
    schema = table([]).schema
    assert ContextFeatures(model=weights, column="frame_feats").schema(schema).field(
        "context_feats"
    ).type == features_type(32)
    later = Weights(path="", step="train")
    with pytest.raises(SchemaError, match="write `dim: 768`"):
        ContextFeatures(model=later, column="frame_feats").schema(schema)
    with pytest.raises(VlpipeError, match="the model makes features of 32 values, but the step sets dim: 8"):
        run_map(ContextFeatures(model=weights, column="frame_feats", dim=8), table([np.ones((1, DIM))]))
    with pytest.raises(SchemaError, match="reads column 's3d', which no earlier step writes"):
        ContextFeatures(model=weights).schema(schema)


TEXT = "a [] b []"


@pytest.mark.parametrize("said", ["", TEXT])
def test_states_of_tokens_are_videoberts(tmp_path: Path, said: str) -> None:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    (tmp_path / "model" / "tokenizer").mkdir(parents=True)
    (tmp_path / "model" / "tokenizer" / "vocab.txt").write_text("\n".join(vocab) + "\n")
    tokenizer = Tokenizer.load(tmp_path / "model")
    torch.manual_seed(0)
    tokens = {"vocab_size": 7, "start": 2, "end": 3, "mask": 4, "num_codes": 9}
    model = VideoBert(
        **tokens, width=16, layers=1, heads=2, max_text_length=8, max_video_length=3, init_std=0.3
    )
    folder.save(model, tmp_path / "model")
    rows = [[4, 0, 8, 2], [], [1]]
    kind = pa.list_(pa.struct([("start_s", pa.float32()), ("end_s", pa.float32()), ("token", pa.int32())]))
    entries = [[{"start_s": k, "end_s": k + 1, "token": t} for k, t in enumerate(row)] for row in rows]
    table = pa.table({"id": list("xyz"), "video_tokens": pa.array(entries, kind)})
    stage = ContextFeatures(model=Weights(path=str(tmp_path / "model")), column="video_tokens", text=said)
    out = run_map(stage, table)
    assert out.table.schema.field("context_feats").type == features_type(32 if said else 16)
    assert [(r.id, r.why) for r in out.rejects] == [("y", "no_window")]
    found = {row["id"]: [entry["feat"] for entry in row["context_feats"]] for row in out.table.to_pylist()}
    ids = [tokenizer.start, *tokenizer.ids("a"), 4, *tokenizer.ids("b"), 4, tokenizer.end]
    for name, row, runs in (("x", rows[0], [[4, 0, 8], [2]]), ("z", rows[2], [[1]])):
        wanted = []
        for run in runs:
            streams = {"video": Stream(torch.tensor([run]))}
            if said:
                streams["text"] = Stream(torch.tensor([ids]))
            fused = Outputs(model.eval(), Batch(streams, torch.arange(1)), grad=False).fused
            parts = [fused["video"]]
            if said:
                parts.append(fused["text"][:, [2, 4]].mean(1, keepdim=True).expand(-1, len(run), -1))
            wanted.append(torch.cat(parts, 2))
        assert len(found[name]) == len(row)
        np.testing.assert_allclose(np.array(found[name]), torch.cat(wanted, 1)[0].numpy(), atol=3e-3)
