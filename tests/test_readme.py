"""The README's two examples are code that runs."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from vlpipe.models.features import Features
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.pipeline.testing import run_map

README = (Path(__file__).parents[1] / "README.md").read_text()
NAMES = {
    "Iterator": Iterator,
    "Mapping": Mapping,
    "contextmanager": contextmanager,
    "dataclass": dataclass,
    "Any": Any,
    "ClassVar": ClassVar,
    "pa": pa,
    "pc": pc,
    "Out": Out,
    "Reject": Reject,
    "MapStage": MapStage,
    "Work": Work,
    "nn": nn,
    "Tensor": Tensor,
    "Features": Features,
}


def example(name: str) -> Any:
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.S) if f"class {name}" in block
    ]
    scope = dict(NAMES, __name__="readme")
    exec(code, scope)
    return scope[name]


def test_the_stage() -> None:
    stage = example("DropShort")(min_side=50)
    out = run_map(stage, pa.table({"id": ["a", "b"], "width": [49, 60], "height": [60, 50]}))
    assert out.table["id"].to_pylist() == ["b"]
    assert out.rejects == [Reject("a", "filtered", "too_small")]


def test_the_objective() -> None:
    image = nn.functional.normalize(torch.randn(4, 8), dim=1)
    loss = example("Cosine")()(None, {}, SimpleNamespace(image_feat=image, text_feat=image))
    torch.testing.assert_close(loss["cosine"], torch.tensor(0.0), atol=1e-6, rtol=0)


def test_every_file_it_names_is_there() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(r"workflows/\w+\.yaml", README):
        assert (root / name).exists(), name
    for room, files in (
        ("pipeline", "shard stage workflow plan runner work on_ray local receipt"),
        ("models", "blip vision text generate checkpoints tokenizer"),
        ("models/objectives", "itc itm lm"),
    ):
        for file in files.split():
            assert f"{file}.py" in README
            assert (root / room / f"{file}.py").exists(), file
