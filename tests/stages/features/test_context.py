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
    with pytest.raises(VlpipeError, match="the model has width 32, but the step sets dim: 8"):
        run_map(ContextFeatures(model=weights, column="frame_feats", dim=8), table([np.ones((1, DIM))]))
    with pytest.raises(SchemaError, match="reads column 's3d', which no earlier step writes"):
        ContextFeatures(model=weights).schema(schema)
