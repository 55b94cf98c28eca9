"""Suppression and RoIPool without loops over boxes, beside the loops that the tests compare them with.

    python benchmarks/detection_loops.py            # on the GPU if there is one, otherwise on the CPU
    python benchmarks/detection_loops.py --write    # and puts the page into detection_loops.md beside this file

Sizes are those of the full-size detector: 6,000 proposals of which 300 stay, 1,600 classes, maps of 1,024 x 38 x 63, and
64 regions at a time. Boxes are random, around few places.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import machine, machine_line, table
from torch import Tensor

from vlpipe.models.detection.nms import nms, surviving_confidence
from vlpipe.models.detection.roi import roi_pool

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "models" / "detection"))

from test_without_loops import heaps, looped_confidence, looped_nms, looped_pool  # noqa: E402


def with_gradient(pool: Callable[..., Tensor], maps: Tensor, boxes: Tensor) -> Tensor:
    maps = maps.detach().requires_grad_()
    pool(maps, boxes, 14, 1 / 16).square().sum().backward()
    assert maps.grad is not None
    return maps.grad


def parts(device: str) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """Name of a part -> (as it is, as a loop)."""
    torch.manual_seed(0)
    boxes = heaps(6000, 0)[0].to(device)
    scores = torch.randn(6000, device=device)
    kept = boxes[nms(boxes, scores, 0.7, limit=300)]
    probs = (3 * torch.randn(len(kept), 1600, device=device)).softmax(1)
    maps = torch.randn(1024, 38, 63, device=device).relu()
    some = kept[:64]
    return {
        f"nms, {len(boxes):,} boxes, {len(kept)} stay": (
            lambda: nms(boxes, scores, 0.7, limit=300),
            lambda: looped_nms(boxes, scores, 0.7, limit=300),
        ),
        f"surviving_confidence, {len(kept)} boxes": (
            lambda: surviving_confidence(kept, probs, 0.3),
            lambda: looped_confidence(kept, probs, 0.3),
        ),
        f"roi_pool, {len(some)} boxes": (
            lambda: roi_pool(maps, some, 14, 1 / 16),
            lambda: looped_pool(maps, some, 14, 1 / 16),
        ),
        f"roi_pool with its gradient, {len(some)} boxes": (
            lambda: with_gradient(roi_pool, maps, some),
            lambda: with_gradient(looped_pool, maps, some),
        ),
    }


def timed(device: str, part: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Milliseconds, of the CPU or of the clock on a GPU, and the result."""
    if device != "cpu":
        torch.cuda.synchronize()
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    found = part()
    if device != "cpu":
        torch.cuda.synchronize()
    return 1000 * (clock() - began), found


def markdown(found: dict[str, Any]) -> str:
    lines = [
        "# Suppression and RoIPool without loops",
        f"Written by `python benchmarks/detection_loops.py --write`. {machine_line(found['machine'])}",
        f"Device: {found['device']}, one thread. {'CPU milliseconds' if found['device'] == 'cpu' else 'Milliseconds'}, the "
        f"least of {found['rounds']} rounds, in turn with a loop over the boxes.",
        table(
            ["", "ms", "as a loop, ms", "ratio", "largest difference"],
            [
                [name, f"{min(new):.1f}", f"{min(old):.1f}", f"{min(old) / min(new):.1f}", f"{most:.1g}"]
                for name, (new, old, most) in found["parts"].items()
            ],
        ),
        "Where pixels tie for a maximum, which zeros of rectified maps do, RoIPool's gradient is shared in other parts.",
    ]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write detection_loops.md")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine(), "parts": {}, **vars(options)}
    for name, (new, old) in parts(options.device).items():
        times: tuple[list[float], list[float], float] = [], [], 0.0
        for _ in range(options.rounds + 1):  # the first round warms up
            (new_ms, got), (old_ms, want) = timed(options.device, new), timed(options.device, old)
            times[0].append(new_ms)
            times[1].append(old_ms)
        most = float((got.double() - want.double()).abs().max())
        found["parts"][name] = times[0][1:], times[1][1:], most
        print(name, found["parts"][name], flush=True)
    page = markdown(found)
    print(page)
    if options.write:
        (HERE / "detection_loops.md").write_text(page)


if __name__ == "__main__":
    main()
