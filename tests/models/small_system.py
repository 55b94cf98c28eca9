"""Small systems for tests of what must hold for every system: each module of `tests/models/small` has one as SYSTEM."""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.teachers import Ema
from vlpipe.stages.train.build import Net

WORDS, ROWS = 50, 4
SMALL: dict[str, Any] = {"width": 32, "layers": 2, "heads": 2, "max_text_length": 12}
REGIONS: dict[str, Any] = {"feat_dim": 10, "num_objects": 7}
TOWERS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "vision_width": 32,
    "vision_layers": 2,
    "vision_heads": 2,
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 2,
    "max_text_length": 12,
}
VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 2}
RESNET: dict[str, Any] = {"image_size": 32, "layers": [1, 1], "width": 4, "projection_dim": 8}


@dataclass(frozen=True)
class SmallSystem:
    """A model, its losses, and the names of the streams it gets.

    taught: by a momentum teacher. image: which of `streams` the stream `image` is. units: layers that FSDP2 shards on their
    own, besides those of the blocks. extra: rank -> further streams.
    """

    make: Callable[[], nn.Module]
    objectives: Sequence[nn.Module]
    streams: tuple[str, ...]
    taught: bool = False
    image: str = "image"
    units: tuple[type[nn.Module], ...] = ()
    extra: Callable[[int], dict[str, Stream]] = lambda rank: {}

    def net(self) -> Net:
        torch.manual_seed(0)
        teachers = {"ema": Ema(momentum=0.9)} if self.taught else {}
        objectives = [(1.0, "", copy.deepcopy(o)) for o in self.objectives]
        return Net(self.make(), objectives, teachers).train()  # type: ignore[arg-type]

    def batch(self, rank: int) -> Batch:
        found = streams(rank) | self.extra(rank)
        given = {name: found[self.image if name == "image" else name] for name in self.streams}
        return Batch(given, same=torch.arange(ROWS) + ROWS * rank)


def small_systems() -> dict[str, SmallSystem]:
    """Returns the small systems by name."""
    folder = Path(__file__).with_name("small")
    return {
        info.name: importlib.import_module(f"tests.models.small.{info.name}").SYSTEM
        for info in pkgutil.iter_modules([str(folder)])
    }


def streams(rank: int) -> dict[str, Stream]:
    """The rows of a rank, with everything that some objective asks for."""
    draw = torch.Generator().manual_seed(rank)
    ids = torch.randint(5, WORDS, (ROWS, 12), generator=draw)
    ids[:, 0], ids[:, -1] = 1, 2
    target = ids.masked_fill(torch.arange(12)[None] % 3 != 1, IGNORE)
    text = Stream(
        ids,
        torch.ones(ROWS, 12, dtype=torch.bool),
        target={"ids": target, "match": torch.tensor([0, 1, 1, 0])},
    )
    keep = torch.arange(0, 16, 4)[None].expand(ROWS, -1)
    masked = torch.ones(ROWS, 16, dtype=torch.bool).scatter(1, keep, False)
    pixels = torch.randn(ROWS, 3, 32, 32, generator=draw)
    feats, corners = torch.randn(ROWS, 3, 10, generator=draw), torch.rand(ROWS, 3, 2, generator=draw) / 2
    regions = Stream(
        feats,
        torch.ones(ROWS, 3, dtype=torch.bool),
        {
            "box": torch.cat([corners, corners + 0.4], -1),
            "obj": torch.randint(0, 7, (ROWS, 3), generator=draw),
            "obj_conf": torch.rand(ROWS, 3, generator=draw),
        },
        {"masked": torch.tensor([[True, False, True]]).expand(ROWS, -1), "feat": feats + 1},
    )
    codes = Stream(torch.randint(0, 9, (ROWS, 6), generator=draw), torch.ones(ROWS, 6, dtype=torch.bool))
    return {
        "text": text,
        "image": Stream(pixels),
        "second": Stream(torch.randn(ROWS, 3, 32, 32, generator=draw)),
        "coded": Stream(
            pixels,
            extra={"masked": masked, "codes": torch.randint(0, 9, (ROWS, 16), generator=draw)},
            target={"masked": masked},
        ),
        "label": Stream(torch.tensor([3, IGNORE, 0, 6])),
        "hidden": Stream(pixels, extra={"keep": keep}, target={"masked": masked}),
        "regions": regions,
        "video": codes,
    }
