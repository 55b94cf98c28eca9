"""MAE's encoder with mask tokens beside the one that sees visible patches alone (table 1c of He et al. 2022).

    python benchmarks/mae_mask_tokens.py            # two minutes
    python benchmarks/mae_mask_tokens.py --write    # and puts the page into mae_mask_tokens.md beside this file

A step is forward, backward and AdamW on made-up pictures, at a mask ratio of 75 %, one thread; steps in turn. The paper
has 3.3 times the FLOPs for ViT-L with a decoder of 8 blocks. Expected before the first run: at least 2 times the time in all
rows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from record import machine, machine_line, table

from vlpipe.models.flops import flops_per_sample
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.stages.train.build import build_net
from vlpipe.stages.train.train import Train

HERE = Path(__file__).parent
RATIO, ROUNDS, WARM = 0.75, 7, 2
# name -> (batch, parameters of the model)
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "that of `workflows/mae.yaml`": (
        64,
        {
            "image_size": 32,
            "patch_size": 4,
            "width": 96,
            "layers": 3,
            "heads": 4,
            "decoder_width": 64,
            "decoder_layers": 1,
            "decoder_heads": 4,
        },
    ),
    "ViT-S/16, 12 layers, decoder of 1 block": (
        4,
        {
            "image_size": 224,
            "patch_size": 16,
            "width": 384,
            "layers": 12,
            "heads": 6,
            "decoder_width": 256,
            "decoder_layers": 1,
            "decoder_heads": 8,
        },
    ),
    "ViT-S/16, 12 layers, decoder of 4 blocks": (
        4,
        {
            "image_size": 224,
            "patch_size": 16,
            "width": 384,
            "layers": 12,
            "heads": 6,
            "decoder_width": 256,
            "decoder_layers": 4,
            "decoder_heads": 8,
        },
    ),
}


def made_batch(num: int, side: int, patch: int) -> Batch:
    torch.manual_seed(1)
    num_patches = (side // patch) ** 2
    order = torch.rand(num, num_patches).argsort(dim=1)
    keep = order[:, : num_patches - round(RATIO * num_patches)].sort(dim=1).values
    masked = torch.ones(num, num_patches, dtype=torch.bool).scatter_(1, keep, False)
    pixels = torch.randn(num, 3, side, side)
    return Batch(
        {"image": Stream(pixels, extra={"keep": keep}, target={"masked": masked})}, torch.arange(num)
    )


class Trained:
    """A model and its optimiser."""

    def __init__(self, num: int, model: dict[str, Any], *, encode_masked: bool) -> None:
        torch.manual_seed(0)
        recipe = Train(
            objectives=["pixel_mse:PixelMse"],
            model={"use": "mae:Mae", **model, "encode_masked": encode_masked},
            batch_size=num,
            steps=1000,
            lr=1e-3,
        )
        self.net = build_net(recipe, None).train()
        self.batch = made_batch(num, model["image_size"], model["patch_size"])
        self.optimiser = torch.optim.AdamW(self.net.parameters(), 1e-3)

    def step(self) -> float:
        """Returns the CPU seconds of one step."""
        began = time.process_time()
        term = self.net(self.batch)["pixel_mse"]
        (term.total / term.count).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return time.process_time() - began


def compared(num: int, model: dict[str, Any]) -> tuple[float, float, float]:
    """Returns median CPU seconds of a step without and with mask tokens in the encoder, and the ratio of their FLOPs."""
    ways = [Trained(num, model, encode_masked=masked) for masked in (False, True)]
    gflop = [flops_per_sample(way.net, way.batch) for way in ways]
    taken = [[way.step() for way in ways] for _ in range(WARM + ROUNDS)][WARM:]
    without, given = (statistics.median(some) for some in zip(*taken, strict=True))
    return without, given, gflop[1] / gflop[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write mae_mask_tokens.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    at = machine()
    rows = []
    for name, (num, model) in MODELS.items():
        without, given, flops = compared(num, model)
        rows.append(
            (
                name,
                num,
                f"{1000 * without:.0f}",
                f"{1000 * given:.0f}",
                f"{given / without:.2f}",
                f"{flops:.2f}",
            )
        )
    header = ("model", "batch", "visible alone, CPU ms", "with mask tokens", "time", "FLOPs")
    after = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    text = (__doc__ or "").split("\n\n")
    page = "\n\n".join(
        [
            "# MAE's encoder with mask tokens",
            text[-1].strip(),
            f"Written by `python benchmarks/mae_mask_tokens.py --write`. {machine_line(at)} When it ended: {after}.",
            table(header, rows),
            f"Median of {ROUNDS} steps.",
        ]
    )
    print(page)
    if options.write:
        (HERE / "mae_mask_tokens.md").write_text(page + "\n")


if __name__ == "__main__":
    main()
