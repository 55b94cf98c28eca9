"""Regions that our detector makes of real photos go through each region system: shapes, counts, memory and time.

The detector has random weights, so nothing is claimed of what the regions are.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models.build import build
from vlpipe.models.detection.config import DetectorConfig
from vlpipe.models.detection.faster_rcnn import FasterRcnn
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.capabilities import FillsWords, Fuses, Matches, PredictsRegions, missing
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_map
from vlpipe.stages.common.detector import save_names
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.loading.rows import Row, read_unit, scan
from vlpipe.stages.regions.regions import RegionFeatures
from vlpipe.stages.train.build import build_makers
from vlpipe.stages.train.recipe import Recipe

NUM_PHOTOS, LEAST, MOST = 8, 5, 12
CLASSES = ("cat", "dog", "tree")
DETECTOR = DetectorConfig(
    num_classes=3,
    num_attributes=2,
    depths=(1, 1, 1, 1),
    width=4,
    rpn_width=8,
    anchor_sizes=(16, 32, 48, 64),
    pool_size=4,
    proposals=30,
    short_side=96,
    long_side=160,
)
FEAT = 128  # 32 times the detector's width
SMALL = {"feat_dim": FEAT, "width": 32, "layers": 2, "heads": 2, "max_text_length": 40, "dropout": 0.0}
INTERBERT = {k: v for k, v in SMALL.items() if k != "layers"}
LXMERT = {**INTERBERT, "language_layers": 1, "object_layers": 1, "cross_layers": 1}
WIDE = {"region_width": 24, "region_heads": 2, "region_layers": 1, "co_width": 16, "co_heads": 2}
SYSTEMS: dict[str, dict[str, Any]] = {
    "vilbert:VilBert": {**SMALL, **WIDE, "num_objects": 4},
    "visualbert:VisualBert": SMALL,
    "unicoder_vl:UnicoderVl": {**SMALL, "num_objects": 4},
    "lxmert:Lxmert": {**LXMERT, "num_objects": 4, "num_attributes": 3},
    "vl_bert:VlBert": {**SMALL, "num_objects": 4, "place_dim": 16},
    "uniter:Uniter": {**SMALL, "num_objects": 4},
    "vlp:Vlp": {**SMALL, "num_objects": 3},
    "imagebert:ImageBert": {**SMALL, "num_objects": 4},
    "oscar:Oscar": SMALL,
    "interbert:InterBert": {
        **INTERBERT,
        "num_objects": 4,
        "joint_layers": 1,
        "word_layers": 1,
        "region_layers": 1,
    },
    "ernie_vil:ErnieVil": {**SMALL, "num_objects": 4, "image_width": 24, "image_layers": 1, "image_heads": 2},
    "unimo:Unimo": {**SMALL, "num_objects": 4, "contrast": False},
}
MAX_MB, MAX_S = 300, 30  # more memory than before, and CPU seconds, of one system


@pytest.fixture(scope="module")
def rows(data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Photos with their captions and regions, as training reads them."""
    torch.manual_seed(0)
    model, folder = FasterRcnn(DETECTOR), tmp_path_factory.mktemp("photos")
    for layer, std in ((model.head.classes, 1.0), (model.head.boxes, 0.05), (model.rpn.objectness, 0.3)):
        torch.nn.init.normal_(layer.weight, std=std)
    model.save(folder)
    save_names(folder, CLASSES, ("red", "small"))
    source, found = data("flickr8k"), []
    with (source / "dev.jsonl").open() as handle:
        for line in (json.loads(next(handle)) for _ in range(NUM_PHOTOS)):
            width, height = Image.open(source / line["file"]).size
            about = {"id": line["file"], "url": line["file"], "width": width, "height": height}
            texts = [text(caption, "human") for caption in line["captions"]]
            found.append({**about, "texts": texts, "image": (source / line["file"]).read_bytes()})
    table = pa.Table.from_pylist(found, pa.schema([*LISTED, *IMAGE_FIELDS]))
    stage = RegionFeatures(
        detector=Weights(path=str(folder)), feat_dim=FEAT, num_classes=3, min_regions=LEAST, max_regions=MOST
    )
    made = run_map(stage, table)
    assert not made.rejects
    columns = ("regions", "width", "height", "region_tags")
    (unit,) = scan(dataset(folder / "rows", made.table), "pairs", columns).units
    return list(read_unit(unit, columns))


def test_each_photo_has_as_many_regions_as_the_rule_says(rows: list[Row]) -> None:
    assert len(rows) == NUM_PHOTOS
    for row in rows:
        assert LEAST <= len(row.columns["regions"].values) <= MOST
        assert len(row.texts) == 5


@pytest.mark.parametrize("use", SYSTEMS)
def test_a_system_reads_regions_of_photos(use: str, rows: list[Row]) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    before, start = peak_mb(), time.process_time()
    tokenizer = Tokenizer.train([one for row in rows for one in row.texts], 200)
    model = build({"use": use, **SYSTEMS[use]}, "vlpipe.models.systems", tokenizer=tokenizer).eval()
    makers = build_makers(Recipe(objectives=[]), model, tokenizer)
    streams = {
        name: maker.collate([maker(row, row.texts[0], np.random.default_rng(0)) for row in rows])
        for name, maker in makers.items()
    }
    streams = {
        name: s.map(lambda v: v.float() if v.is_floating_point() else v) for name, s in streams.items()
    }
    out = Outputs(model, Batch(streams, torch.arange(NUM_PHOTOS)))

    nums = [len(row.columns["regions"].values) for row in rows]
    regions, words = streams["regions"], streams["text"]
    assert regions.mask is not None
    assert regions.mask.sum(1).tolist() == nums
    assert regions.data.shape == (NUM_PHOTOS, max(nums), FEAT)
    box = regions.extra["box"][regions.mask]
    assert ((box >= 0) & (box <= 1)).all()

    assert not missing(model, [Fuses, FillsWords])
    kinds = () if missing(model, [PredictsRegions]) else model.REGION_KINDS
    predicted = {"words": model.predict_words(out.word_hidden)}
    assert predicted["words"].shape == (*words.data.shape, tokenizer.vocab_size)
    for kind in kinds:
        predicted[kind] = model.predict_regions(out.region_hidden, kind)
        sizes = {"feat": FEAT, "obj": SYSTEMS[use].get("num_objects"), "attr": 3}
        assert predicted[kind].shape == (NUM_PHOTOS, max(nums), sizes[kind]), kind
    if not missing(model, [Matches]):
        predicted["match"] = out.match
        assert out.match.shape == (NUM_PHOTOS, 2)
    assert all(one.isfinite().all() for one in predicted.values())

    least = int(np.argmin(nums))  # the photo with the most padding: what is padding changes nothing
    length, alone = int(words.mask[least].sum()), slice(least, least + 1)  # type: ignore[index]
    few = {"regions": cut(regions.rows(alone), nums[least]), "text": cut(words.rows(alone), length)}
    single = Outputs(model, Batch(few, torch.zeros(1, dtype=torch.long)))
    torch.testing.assert_close(
        model.predict_words(single.word_hidden)[0], predicted["words"][least, :length], atol=1e-4, rtol=1e-4
    )

    sum(one.square().mean() for one in predicted.values()).backward()  # type: ignore[union-attr]
    grads = [one.grad for one in model.parameters() if one.grad is not None]
    assert grads
    assert all(one.isfinite().all() for one in grads)
    assert peak_mb() - before < MAX_MB
    assert time.process_time() - start < MAX_S


def cut(stream: Stream, num: int) -> Stream:
    """The first `num` positions of each row."""
    return stream.map(lambda value: value[:, :num] if value.ndim > 1 else value)


def peak_mb() -> float:
    """The most memory that this process had, in MB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1 << 20 if sys.platform == "darwin" else 1 << 10)
