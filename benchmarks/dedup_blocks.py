"""The search for pairs in large blocks, as on a GPU, beside small blocks and beside plain products.

    python benchmarks/dedup_blocks.py                     # on the GPU if there is one, otherwise on the CPU
    python benchmarks/dedup_blocks.py --rows 200000       # default: 8,000
    python benchmarks/dedup_blocks.py --write             # and puts the page into dedup_blocks.md beside this file

All ways search the same rows for pairs at cosine 0.90 or more, in turn, in one process. Vectors are those of
`dedup_data.py`, and independent normal ones, of which a fiftieth are near copies.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from dedup_data import planted
from record import machine, machine_line, table

from vlpipe.stages.dedup.cosine import (
    SLACK,
    Side,
    Workers,
    near_pairs,
    on_gpu,
    scored,
    sketch,
    strong_directions,
)
from vlpipe.stages.dedup.on_device.pairs import DevicePairs

HERE = Path(__file__).parent
DIM, COSINE = 512, 0.90
CPU_BYTES = 1 << 30
Vectors = npt.NDArray[np.float32]
Pairs = npt.NDArray[np.int64]  # (P, 2)


def normal(num_rows: int) -> Vectors:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows, DIM)).astype(np.float32)
    num = num_rows // 100
    x[:num] = x[num : 2 * num] + 0.3 * rng.standard_normal((num, DIM)).astype(np.float32)
    found: Vectors = x / np.linalg.norm(x, axis=1, keepdims=True)
    return found


def web(num_rows: int) -> Vectors:
    return np.array(planted("web", num_rows, DIM, cosine=COSINE + 1e-4).vectors)


def plain(device: str, x: Vectors, rows: int = 4096, columns: int = 65_536) -> Pairs:
    """Products of whole vectors in large blocks, the upper triangle; only candidates, not scored."""
    on, found = torch.from_numpy(x).to(device), []
    for i in range(0, len(x), rows):
        for j in range(i, len(x), columns):
            near = (on[i : i + rows] @ on[j : j + columns].T >= COSINE - SLACK).nonzero()
            near += near.new_tensor([i, j])
            found.append(near[near[:, 0] < near[:, 1]].cpu().numpy())
    return np.concatenate(found)


def small_blocks(device: str, x: Vectors, sketches: Vectors) -> Pairs:
    """What a GPU did before: 256 x 4,096 products at a time, for each of which the host waits, and scores pairs itself."""
    columns, found = torch.from_numpy(sketches).to(device), []
    for start in range(0, len(x), 256):
        rows = columns[start : start + 256]
        for first in range(start, len(x), 4096):
            products = rows @ columns[first : first + 4096].T
            hit = torch.nonzero(products.amax(dim=1) >= COSINE - SLACK)[:, 0]
            near = torch.nonzero(products[hit] >= COSINE - SLACK)
            i, j = hit[near[:, 0]].cpu().numpy() + start, near[:, 1].cpu().numpy() + first
            pairs = scored(x, i[i < j], j[i < j], COSINE)
            found.append(np.stack([pairs.a, pairs.b], axis=1))
    return np.concatenate(found)


def searched(at: Workers, x: Vectors, sketches: Vectors) -> Pairs:
    side = Side(np.arange(len(x)), sketches)
    found = near_pairs(at, side, side, x, COSINE, same=True, limit=10**9)
    return np.concatenate([np.stack([part.a, part.b], axis=1) for part in found])


def ways(device: str, threads: int) -> Iterator[tuple[str, int, Callable[[Vectors, Vectors], Pairs]]]:
    """Name, threads of torch, and the search of vectors with given sketches."""
    at = on_gpu(device) if device != "cpu" else Workers(1, "cpu:0", DevicePairs("cpu:0", CPU_BYTES))
    yield "large blocks", threads, lambda x, sketches: searched(at, x, sketches)
    yield "small blocks, scored on the host", threads, lambda x, sketches: small_blocks(device, x, sketches)
    yield "plain products of whole vectors", threads, lambda x, _: plain(device, x)
    cpu = Workers(threads, "cpu")
    yield "the CPU's search", 1, lambda x, sketches: searched(cpu, x, sketches)


def clock(device: str) -> float:
    """CPU seconds of this process, so that other processes do not count; on a GPU seconds."""
    return time.process_time() if device == "cpu" else time.perf_counter()


def measured(device: str, x: Vectors, threads: int, rounds: int) -> dict[str, Any]:
    """The time of each way in each round, the pairs of the last one, and the time for sketches."""
    began = clock(device)
    basis = strong_directions(x[:4096], COSINE, len(x), device)
    sketches = sketch(x, basis, device)
    found: dict[str, Any] = {"rank": basis.shape[1], "sketch_s": clock(device) - began, "ways": {}}
    for _ in range(rounds + 1):  # the first round warms up
        for name, num_threads, search in ways(device, threads):
            torch.set_num_threads(num_threads)
            began = clock(device)
            pairs = search(x, sketches)
            one = found["ways"].setdefault(name, {"seconds": []})
            one["seconds"].append(clock(device) - began)
            one["pairs"] = {(int(min(p)), int(max(p))) for p in pairs}
    torch.set_num_threads(threads)
    return found


def markdown(found: dict[str, Any]) -> str:
    lines = [
        "# Pairs of similar vectors, in blocks on one device",
        f"Written by `python benchmarks/dedup_blocks.py --write`. {machine_line(found['machine'])}",
        f"Device: {found['device']}; {found['threads']} thread(s). {found['rows']:,} rows of {DIM} dimensions, cosine "
        f"{COSINE:.2f}. {'CPU seconds' if found['device'] == 'cpu' else 'Seconds'}, the least of {found['rounds']} "
        "rounds, the ways in turn; in brackets the largest. The ratio is to large blocks. Plain products only list "
        "candidates; the others score them in float64.",
    ]
    for name, one in found["data"].items():
        best = {way: min(got["seconds"][1:]) for way, got in one["ways"].items()}
        want = one["ways"]["the CPU's search"]["pairs"]
        lines += [
            f"## {name}",
            f"Sketches of {one['rank']} directions, made in {one['sketch_s']:.2f} s, which is not counted below.",
            table(
                ["", "s", "ratio", "pairs", "as the CPU's search"],
                [
                    [
                        way,
                        f"{best[way]:.3f} ({max(got['seconds'][1:]):.3f})",
                        f"{best[way] / best['large blocks']:.2f}",
                        f"{len(got['pairs']):,}",
                        "yes" if got["pairs"] == want else f"{len(got['pairs'] ^ want):,} differ",
                    ]
                    for way, got in one["ways"].items()
                ],
            ),
        ]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write dedup_blocks.md")
    parser.add_argument("--rows", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    found: dict[str, Any] = {"machine": machine(), "data": {}, **vars(options)}
    for name, make in (("Topics, as of photos", web), ("Independent normal vectors", normal)):
        found["data"][name] = measured(options.device, make(options.rows), options.threads, options.rounds)
    page = markdown(found)
    print(page)
    if options.write:
        (HERE / "dedup_blocks.md").write_text(page)


if __name__ == "__main__":
    main()
