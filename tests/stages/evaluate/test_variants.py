"""Captions against false rewrites: counted by a model whose scores are known, and run with one of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.regions.unimo import Unimo
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.region_rows import region_fields, regions_array
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.evaluate.masked import partnered
from vlpipe.stages.evaluate.written.variants import VariantAccuracy, best_is_positive
from vlpipe.stages.scene_graphs.rewrites import REWRITES


class Oracle:
    """Scores the variant whose number the image tells."""

    def variant_scores(self, out: Outputs) -> torch.Tensor:
        return torch.nn.functional.one_hot(out.stream("regions").data, 3).float()


def test_the_best_of_those_that_are_there() -> None:
    there = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [True, True, True]])
    positive = torch.tensor(
        [[True, False, False], [True, False, False], [True, False, False], [True, True, False]]
    )
    streams = {
        "variants": Stream(torch.zeros(4, 3), extra={"there": there, "positive": positive}),
        "regions": Stream(torch.tensor([0, 1, 0, 2])),
    }
    out = Outputs(Oracle(), Batch(streams, same=torch.arange(4)), grad=False)
    right, share = best_is_positive(partnered(out, "variants", "true"))
    assert right.tolist() == [True, False, False]  # the third sample has no negative
    assert share.tolist() == pytest.approx([1 / 3, 1 / 2, 2 / 3])
    right, _ = best_is_positive(partnered(out, "variants", "shuffled"))
    assert right.tolist() == [False, True, True]
    streams["regions"] = Stream(torch.full((4,), 2))  # not there in the second: both that are score 0
    out = Outputs(Oracle(), Batch(streams, same=torch.arange(4)), grad=False)
    right, _ = best_is_positive(partnered(out, "variants", "true"))
    assert right.tolist() == [False, False, False]


def rows(num: int) -> pa.Table:
    rng = np.random.default_rng(0)
    one = {
        "feat": rng.normal(size=(2, 6)).astype(np.float32),
        "box": np.array([[0, 0, 4, 4], [2, 2, 8, 8]], np.float32),
        "prob": np.eye(3)[[0, 1]],
        "obj": np.array([0, 1]),
        "obj_conf": np.ones(2, np.float32),
        "attr": np.array([0, 0]),
        "attr_conf": np.ones(2, np.float32),
    }
    return pa.table(
        {
            "id": [f"r{k}" for k in range(num)],
            "texts": pa.array([[text("a red ring", "web")]] * num, TEXTS),
            "rewrites": pa.array([[[{"text": "a blue ring", "kind": "attributes"}]]] * num, REWRITES),
            "width": pa.array([8] * num, pa.int32()),
            "height": pa.array([8] * num, pa.int32()),
            "regions": regions_array([one] * num, 6, 3),
        }
    ).cast(
        pa.schema(
            [
                ("id", pa.string()),
                ("texts", TEXTS),
                ("rewrites", REWRITES),
                ("width", pa.int32()),
                ("height", pa.int32()),
                region_fields(6, 3)[0],
            ]
        )
    )


def test_a_model_of_random_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red ring blue"] * 9, 60)
    model = Unimo(
        vocab_size=tokenizer.vocab_size,
        feat_dim=6,
        num_objects=3,
        width=16,
        layers=1,
        heads=2,
        max_text_length=8,
    )
    folder.save(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model/tokenizer")
    data, weights = [dataset(tmp_path / "in", rows(6))], Weights(path=str(tmp_path / "model"))
    stage = VariantAccuracy(model=weights, streams={"variants": {"negatives": {"rewrites": 1}}}, batch_size=3)
    found = {
        row["name"]: (row["value"], row["num_rows"])
        for row in run_gather(stage, data, tmp_path).table.to_pylist()
    }
    assert found["variants/chance"] == (0.5, 6)
    assert found["variants/true"] in {(0.0, 6), (1.0, 6)}  # all rows are alike
    assert found["variants/true"] == found["variants/shuffled"]
    with pytest.raises(VlpipeError, match="no sample has a negative"):
        run_gather(VariantAccuracy(model=weights, batch_size=3), data, tmp_path)
