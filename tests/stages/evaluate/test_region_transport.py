"""How much of a word the transport plan moves to the region that it names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.models import folder
from vlpipe.models.systems.regions.uniter import Uniter
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather
from vlpipe.stages.common.region_rows import region_columns, region_fields, regions_array
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.evaluate.matching.region_transport import RegionTransport, shares

CLASSES = ("ring", "square")
WORDS = {"square": ["square", "box"], "ring": ["ring"]}


def test_the_share_of_a_word_on_its_region() -> None:
    plan = torch.tensor([[[0.1, 0.3], [0.2, 0.1], [0.3, 0.0]]])  # three regions, two words
    first, second = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    named = torch.tensor([[False, True, False]])
    assert shares(plan, first, named, None).tolist() == [pytest.approx([0.2 / 0.6, 1 / 3])]
    assert shares(plan, second, named, None).tolist() == [pytest.approx([0.1 / 0.4, 1 / 3])]
    two = torch.tensor([[True, True, False]])
    padded = plan.clone()
    padded[:, 2] = 0  # a region that is not there has no mass
    assert shares(padded, first, named, two).tolist() == [pytest.approx([0.2 / 0.3, 1 / 2])]
    assert len(shares(plan, first | second, named, None)) == 0  # said twice
    assert len(shares(plan, first, two, None)) == 0  # two regions of the class
    assert len(shares(plan, first, named, named)) == 0  # one region alone


def measured(folder_: Path, texts: list[str]) -> GatherOutput:
    """Rows of a ring and a square each."""
    tokenizer = Tokenizer.train(["a red square beside a blue ring and a box"], vocab_size=100)
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 1, "heads": 2, "max_text_length": 16}
    model = Uniter(vocab_size=tokenizer.vocab_size, feat_dim=4, num_objects=3, **sizes)
    folder.save(model, folder_ / "model")
    tokenizer.save(folder_ / "model")
    rng = np.random.default_rng(0)
    images = [
        {
            "feat": rng.normal(size=(2, 4)).astype(np.float16),
            "box": np.array([[0, 0, 8, 8], [8, 8, 16, 16]], np.float32),
            "prob": np.eye(3, dtype=np.float16)[:2],
            "obj": np.arange(2, dtype=np.int16),
            "obj_conf": np.ones(2, np.float32),
            "attr": np.full(2, -1, np.int16),
            "attr_conf": np.zeros(2, np.float32),
        }
        for _ in texts
    ]
    empty = dict.fromkeys(f.name for f in [*LISTED, *IMAGE_FIELDS])
    rows = [
        {**empty, "id": str(k), "url": "", "texts": [text(said, "web")], "width": 16, "height": 16}
        for k, said in enumerate(texts)
    ]
    table = pa.Table.from_pylist(rows, pa.schema([*LISTED, *IMAGE_FIELDS]))
    columns = region_columns(regions_array(images, 4, 3), [["ring", "square"]] * len(texts), "made")
    for found in region_fields(4, 3):
        table = table.append_column(found, columns[found.name])
    weights = Weights(path=str(folder_ / "model"))
    stage = RegionTransport(model=weights, classes=CLASSES, words=WORDS, batch_size=2)
    return run_gather(stage, [dataset(folder_ / "data", table)], folder_ / "out")


def test_words_that_name_one_region_are_measured(tmp_path: Path) -> None:
    out = measured(tmp_path, ["a red square", "a ring beside a box", "a box and a square", "red"])
    found = {row["name"]: row for row in out.table.to_pylist()}
    assert found["mass"]["num_rows"] == 3
    assert found["mass_uniform"]["value"] == pytest.approx(0.5)
    assert 0 < found["mass"]["value"] < 1
    assert found["mass"]["value"] != pytest.approx(0.5, abs=1e-4)


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match="no text has a word"):
        measured(tmp_path, ["red", "blue"])
    stage = RegionTransport(model=Weights(path="m"), classes=("ring",), words={"cross": ["cross"]})
    assert stage.preflight() == ["words: 'cross' is not in `classes`: ring"]
