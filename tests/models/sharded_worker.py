"""One of two ranks: each system's loss and gradients under FSDP2, and under torch.compile, against the plain module.

Run as a script: RANK FOLDER. Prints a line per system and writes what differs to FOLDER/rank.txt.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from vlpipe.models.blocks.post_norm import PostNormLayer
from vlpipe.models.blocks.transformer import PreNormLayer
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.objective import Term
from vlpipe.models.objectives.images.classify import Classify
from vlpipe.models.objectives.images.masked_codes import MaskedImageCodes
from vlpipe.models.objectives.images.moco import Moco as MocoLoss
from vlpipe.models.objectives.images.moco import MocoV3 as MocoV3Loss
from vlpipe.models.objectives.images.nt_xent import NtXent
from vlpipe.models.objectives.infonce import InfoNce
from vlpipe.models.objectives.itc import Itc
from vlpipe.models.objectives.itm import Itm
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.pixel_mse import PixelMse
from vlpipe.models.objectives.region import RegionClass, RegionFeatures
from vlpipe.models.objectives.region_mse import RegionMse
from vlpipe.models.systems.beit import Beit
from vlpipe.models.systems.bert import Bert
from vlpipe.models.systems.blip.config import BlipConfig
from vlpipe.models.systems.blip.model import Blip
from vlpipe.models.systems.clip import Clip
from vlpipe.models.systems.gpt import Gpt, Layer
from vlpipe.models.systems.lxmert import CrossLayer, Lxmert
from vlpipe.models.systems.mae import Mae
from vlpipe.models.systems.moco import Moco
from vlpipe.models.systems.moco_v3 import MocoV3
from vlpipe.models.systems.simclr import SimClr
from vlpipe.models.systems.uniter import Uniter
from vlpipe.models.systems.videobert import VideoBert
from vlpipe.models.systems.vilt import Vilt
from vlpipe.models.systems.vit import Vit
from vlpipe.models.teachers import Ema
from vlpipe.stages.train.build import Net

WORDS, ROWS = 50, 4
SMALL: dict[str, Any] = {"width": 32, "layers": 2, "heads": 2, "max_text_length": 12}
REGIONS: dict[str, Any] = {"feat_dim": 10, "num_objects": 7}
UNITS = (PreNormLayer, PostNormLayer, CrossLayer, Layer)  # what is sharded on its own; the rest with the root
VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 2}
RESNET: dict[str, Any] = {"image_size": 32, "layers": [1, 1], "width": 4, "projection_dim": 8}
SYSTEMS: dict[str, tuple[Callable[[], Any], list[Any], tuple[str, ...]]] = {
    "clip": (
        lambda: Clip(
            vocab_size=WORDS,
            end=2,
            image_size=32,
            patch_size=8,
            vision_width=32,
            vision_layers=2,
            vision_heads=2,
            text_width=32,
            text_layers=2,
            text_heads=2,
            max_text_length=12,
            embed_dim=16,
        ),
        [InfoNce()],
        ("image", "text"),
    ),
    "blip": (
        lambda: Blip(
            BlipConfig(
                vocab_size=WORDS,
                pad=0,
                cls=1,
                sep=2,
                dec=3,
                enc=4,
                image_size=32,
                patch_size=8,
                vision_width=32,
                vision_layers=2,
                vision_heads=2,
                text_width=32,
                text_layers=2,
                text_heads=2,
                max_text_length=12,
                embed_dim=16,
                dropout=0.0,
            )
        ),
        [Itc(queue_size=0), Itm(), Lm()],
        ("image", "text"),
    ),
    "mae": (
        lambda: Mae(
            image_size=32,
            patch_size=8,
            width=32,
            layers=2,
            heads=2,
            decoder_width=32,
            decoder_layers=1,
            decoder_heads=2,
        ),
        [PixelMse()],
        ("image",),
    ),
    "vilt": (
        lambda: Vilt(vocab_size=WORDS, image_size=32, patch_size=8, **SMALL),
        [MaskedLm(), Match()],
        ("image", "text"),
    ),
    "lxmert": (
        lambda: Lxmert(
            vocab_size=WORDS,
            num_attributes=5,
            width=32,
            heads=2,
            language_layers=1,
            object_layers=1,
            cross_layers=1,
            max_text_length=12,
            dropout=0.0,
            **REGIONS,
        ),
        [MaskedLm(), Match(), RegionFeatures(), RegionClass(which="obj")],
        ("regions", "text"),
    ),
    "uniter": (
        lambda: Uniter(vocab_size=WORDS, dropout=0.0, **SMALL, **REGIONS),
        [MaskedLm(), Match(), RegionMse()],
        ("regions", "text"),
    ),
    "videobert": (
        lambda: VideoBert(
            vocab_size=WORDS, start=1, end=2, mask=3, num_codes=9, max_video_length=8, dropout=0.0, **SMALL
        ),
        [MaskedLm(), Match()],
        ("video", "text"),
    ),
    "bert": (lambda: Bert(vocab_size=WORDS, dropout=0.0, **SMALL), [MaskedLm(), Match()], ("text",)),
    "gpt": (lambda: Gpt(vocab_size=WORDS, start=1, end=2, dropout=0.0, **SMALL), [Lm()], ("text",)),
    "vit": (lambda: Vit(num_classes=7, **VIT), [Classify()], ("image", "label")),
    "beit": (lambda: Beit(num_codes=9, drop_path=0.0, **VIT), [MaskedImageCodes()], ("image",)),
    "moco": (lambda: Moco(**RESNET), [MocoLoss(queue_size=8, random_start=True)], ("image", "second")),
    "moco_v3": (lambda: MocoV3(**VIT, hidden=16), [MocoV3Loss()], ("image", "second")),
    "simclr": (lambda: SimClr(**RESNET), [NtXent()], ("image", "second")),
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


def made(name: str) -> Net:
    make, objectives, _ = SYSTEMS[name]
    torch.manual_seed(0)
    teachers = {"ema": Ema(momentum=0.9)} if name in ("blip", "moco", "moco_v3") else {}
    return Net(make(), [(1.0, "", copy.deepcopy(o)) for o in objectives], teachers).train()


def batch_of(name: str, rank: int) -> Batch:
    found = streams(rank)
    masked = {"mae": "hidden", "beit": "coded"}  # the stream `image` of those
    given = {s: found[masked.get(name, s)] for s in SYSTEMS[name][2]}
    return Batch(given, same=torch.arange(ROWS) + ROWS * rank)


def loss_of(net: Any, batch: Batch) -> torch.Tensor:
    torch.manual_seed(3)  # negatives are drawn
    values = net(batch)
    return sum(
        v.total / v.count for n, v in values.items() if isinstance(v, Term) and not n.endswith("accuracy")
    )


def gradients(net: nn.Module) -> dict[str, torch.Tensor]:
    """The mean over ranks of each gradient."""
    found = {}
    for name, p in net.named_parameters():
        if p.grad is not None:
            grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad.clone()
            if not isinstance(p.grad, DTensor):
                dist.all_reduce(grad)
                grad /= dist.get_world_size()
            found[name.replace("_orig_mod.", "")] = grad
    return found


def different(name: str, rank: int) -> list[str]:
    plain, sharded, compiled = made(name), made(name), made(name)
    batch, mesh = batch_of(name, rank), init_device_mesh("cpu", (2,))
    scalars = {p for p in sharded.parameters() if p.ndim == 0}  # FSDP2 takes none: temperatures
    for module in reversed(list(sharded.modules())):  # the innermost first; teachers as the model
        if isinstance(module, UNITS):
            fully_shard(module, mesh=mesh)
    fully_shard(sharded, mesh=mesh, ignored_params=scalars)
    nets = {"plain": plain, "fsdp": sharded, "compile": torch.compile(compiled, backend="aot_eager")}
    losses, grads = {}, {}
    for kind, net in nets.items():
        loss = loss_of(net, batch)
        loss.backward()
        losses[kind], grads[kind] = loss.detach(), gradients(net)
    found = []
    for kind in ("fsdp", "compile"):
        if not torch.allclose(losses[kind], losses["plain"], rtol=1e-5, atol=1e-6):
            found.append(f"{name} {kind} loss {losses[kind]} {losses['plain']}")
        if set(grads[kind]) != set(grads["plain"]):
            found.append(f"{name} {kind} has gradients of {set(grads[kind]) ^ set(grads['plain'])}")
        found += [
            f"{name} {kind} {n}"
            for n in set(grads[kind]) & set(grads["plain"])
            if not torch.allclose(grads[kind][n], grads["plain"][n], rtol=1e-4, atol=1e-6)
        ]
    return found


def main(rank: int, folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    found = []
    for name in names or SYSTEMS:
        found += different(name, rank)
        print(name, flush=True)
    (folder / f"{rank}.txt").write_text("\n".join(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
