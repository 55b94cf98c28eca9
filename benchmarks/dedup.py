"""Search for near duplicates among made embeddings: recall of planted pairs, time, memory, beside FAISS and SemDeDup.

    python benchmarks/dedup.py             # about an hour on 2 cores; goes on where it was stopped
    python benchmarks/dedup.py --write     # and puts the page into dedup.md beside this file
    python benchmarks/dedup.py --tiny      # the same path in a minute, its figures mean nothing
    python benchmarks/dedup.py --imagededup PYTHON     # its encodings search too; PYTHON has imagededup installed

Every system runs alone in a process of its own, which reports its CPU seconds and its peak of resident memory.
`dedup_data.py` says what the vectors are. The exact pairs are those of a plain product of all rows, in double precision.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dedup_data import MOVES, Planted, planted
from dedup_page import markdown
from record import machine

HERE = Path(__file__).parent
DIM, COSINE = 512, 0.90
SIZES, TINY_SIZES = (20_000, 200_000, 1_000_000), (2_000, 8_000, 20_000)
NUM_QUERIES = 20_000
BLOCK = 2048
Pairs = npt.NDArray[np.int64]  # (P, 2), each smaller row first


def read(folder: Path) -> Planted:
    return Planted(*(np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("vectors", "pairs", "kinds")))


def write_data(folder: Path, num_rows: int) -> None:
    if (folder / "rows.parquet").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    # a little above the threshold, so that no planted pair falls below it by rounding
    data = planted("web", num_rows, DIM, cosine=COSINE + 1e-4)
    for name in ("vectors", "pairs", "kinds"):
        np.save(folder / f"{name}.npy", getattr(data, name))
    kind = pa.list_(pa.float32(), DIM)
    with pq.ParquetWriter(
        folder / "rows.part", pa.schema([("id", pa.string()), ("embedding", kind)])
    ) as writer:
        for start in range(0, num_rows, BLOCK):
            part = data.vectors[start : start + BLOCK]
            ids = [f"{row:08d}" for row in range(start, start + len(part))]
            writer.write_table(
                pa.table([ids, pa.FixedSizeListArray.from_arrays(part.ravel(), DIM)], schema=writer.schema)
            )
    os.replace(folder / "rows.part", folder / "rows.parquet")


# --- the systems: each gets the folder of the data and returns the pairs it found, and what else there is to say


def ours(folder: Path, threads: int, **parameters: Any) -> tuple[Pairs, dict[str, Any]]:
    """The whole step, from Parquet to decisions and edges on disk; exact below 50,000 rows unless told otherwise."""
    import torch

    from vlpipe.pipeline.shard import Shard, heavy
    from vlpipe.pipeline.stage import Dataset
    from vlpipe.pipeline.storage.store import Store
    from vlpipe.pipeline.testing import run_gather
    from vlpipe.stages.dedup.faiss import FaissDuplicates

    torch.set_num_threads(threads)
    rows = pq.ParquetFile(folder / "rows.parquet")
    schema = pa.schema([rows.schema_arrow.field("id"), heavy("embedding", pa.list_(pa.float32(), DIM))])
    shard = Shard(path="rows.parquet", num_rows=rows.metadata.num_rows, digest="")
    data = Dataset(Store(str(folder)), "rows", schema, (shard,))
    with tempfile.TemporaryDirectory(dir=folder) as step:
        said: list[str] = []
        got = run_gather(FaissDuplicates(threshold=COSINE, **parameters), [data], Path(step), said.append)
        edges = pq.read_table(got.artifacts / "edges.parquet", columns=["a", "b"])
        decide = _decide_again(data, Path(step), got.artifacts)
    pairs = np.stack([np.asarray(pc.cast(edges[c], pa.int64())) for c in ("a", "b")], axis=1)
    return pairs, {"said": said, "decide_s": decide}


def _decide_again(data: Any, step: Path, artifacts: Path) -> float:
    """Seconds for another threshold and rule."""
    from vlpipe.pipeline.files import File
    from vlpipe.pipeline.testing import run_gather
    from vlpipe.stages.dedup.redecide import Decide

    began = time.monotonic()
    run_gather(
        Decide(edges=File(path=str(artifacts)), threshold=0.95, rule="components"), [data], step / "again"
    )
    return time.monotonic() - began


def ours_exact(folder: Path, threads: int) -> tuple[Pairs, dict[str, Any]]:
    """All pairs: what `exact_below` does."""
    return ours(folder, threads, exact_below=10**9)


def ours_clusters(folder: Path, threads: int) -> tuple[Pairs, dict[str, Any]]:
    return ours(folder, threads, exact_below=0)


def ours_nearest_two(folder: Path, threads: int) -> tuple[Pairs, dict[str, Any]]:
    """A fixed number of clusters: the two nearest."""
    return ours(folder, threads, exact_below=0, margin=2.0, probes=2)


def ours_nearest(folder: Path, threads: int) -> tuple[Pairs, dict[str, Any]]:
    return ours(folder, threads, exact_below=0, probes=1)


def faiss_range_search(folder: Path, threads: int) -> tuple[Pairs, dict[str, Any]]:
    """IndexFlatIP.range_search of all rows by all rows."""
    import faiss

    faiss.omp_set_num_threads(threads)
    vectors = np.array(read(folder).vectors)
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(vectors), BLOCK):
        limits, _, others = index.range_search(vectors[start : start + BLOCK], COSINE)
        rows = np.repeat(np.arange(start, start + len(limits) - 1), np.diff(limits.astype(np.int64)))
        found.append(np.stack([rows, others], axis=1)[rows < others])
    return np.concatenate(found), {}


def plain_semdedup(folder: Path, threads: int) -> tuple[Pairs, dict[str, Any]]:
    """SemDeDup as the paper says it: spherical k-means, then all pairs within a cluster, in memory.

    A. Abbas et al., 2023, https://arxiv.org/abs/2303.09540. The paper has 50,000 clusters of 440 M images, 8,800 in
    each; here sqrt(N) as ours.
    """
    import faiss
    import torch

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    vectors = np.array(read(folder).vectors)
    kmeans = faiss.Kmeans(DIM, round(len(vectors) ** 0.5), niter=20, seed=1234, spherical=True)
    kmeans.train(vectors)
    nearest = kmeans.index.search(vectors, 1)[1][:, 0]
    order = np.argsort(nearest, kind="stable")
    found = [np.empty((0, 2), np.int64)]
    for rows in np.split(order, np.cumsum(np.bincount(nearest))[:-1]):
        part = torch.from_numpy(vectors[rows])
        i, j = torch.nonzero(torch.triu(part @ part.T, diagonal=1) >= COSINE, as_tuple=True)
        found.append(np.sort(np.stack([rows[i.numpy()], rows[j.numpy()]], axis=1), axis=1))
    return np.concatenate(found), {}


SYSTEMS: dict[str, Callable[[Path, int], tuple[Pairs, dict[str, Any]]]] = {
    "vlpipe": ours_clusters,
    "vlpipe, all pairs": ours_exact,
    "vlpipe, two nearest clusters only": ours_nearest_two,
    "vlpipe, nearest cluster only": ours_nearest,
    "FAISS range_search": faiss_range_search,
    "plain SemDeDup": plain_semdedup,
}
LARGEST = {"vlpipe, all pairs": 200_000, "FAISS range_search": 200_000}  # beyond these it would take hours


def run_one(system: str, folder: Path, threads: int, out: Path) -> None:
    """In a process of its own: the pairs to `out`.npy, the figures to `out`.json."""
    began = time.monotonic()
    pairs, more = SYSTEMS[system](folder, threads)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "system": system,
        "wall_s": time.monotonic() - began,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "num_pairs": len(pairs),
        **more,
    }
    np.save(f"{out}.npy", pairs)
    Path(f"{out}.json").write_text(json.dumps(figures))


def exact_pairs(folder: Path, queries: npt.NDArray[np.int64]) -> Pairs:
    """All pairs of a query and any row with at least the cosine, by a plain product; borderline ones in doubles."""
    import torch

    vectors = read(folder).vectors
    rows, found = np.array(vectors[queries]), [np.empty((0, 2), np.int64)]
    for start in range(0, len(vectors), BLOCK):
        part = np.array(vectors[start : start + BLOCK])
        i, j = torch.nonzero(
            torch.from_numpy(rows) @ torch.from_numpy(part).T >= COSINE - 1e-4, as_tuple=True
        )
        i, j = i.numpy(), j.numpy()
        x, y = rows[i].astype(np.float64), part[j].astype(np.float64)
        cosines = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
        pairs = np.stack([queries[i], j + start], axis=1)[np.round(cosines, 6) >= COSINE]
        found.append(pairs[pairs[:, 0] != pairs[:, 1]])
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def recalls(folder: Path, found: Pairs, exact: Pairs, num_rows: int) -> dict[str, float]:
    """The part of the planted pairs that was found, also per kind of move, and of the exact pairs."""
    have = set((found[:, 0] * num_rows + found[:, 1]).tolist())
    data = read(folder)
    planted_keys = data.pairs[:, 0] * num_rows + data.pairs[:, 1]
    hit = np.array([key in have for key in planted_keys.tolist()])
    exact_keys = (exact[:, 0] * num_rows + exact[:, 1]).tolist()
    return {
        **{kind: float(hit[data.kinds == kind].mean()) for kind in MOVES},
        "planted": float(hit.mean()),
        "exact": sum(key in have for key in exact_keys) / max(len(exact_keys), 1),
        "num_exact": len(exact_keys),
    }


def measure(system: str, num_rows: int, folder: Path, threads: int) -> dict[str, Any]:
    """The figures of one system at one size; those of an earlier run when they are there."""
    out = folder / f"{threads}-{system.replace(' ', '_').replace(',', '')}"
    if not Path(f"{out}.json").exists():
        command = [
            sys.executable,
            __file__,
            "--one",
            system,
            "--data",
            str(folder),
            "--threads",
            str(threads),
        ]
        subprocess.run([*command, "--out", str(out)], check=True)
    if not (folder / "exact.npy").exists():
        everyone = num_rows <= NUM_QUERIES
        rng = np.random.default_rng(0)
        queries = np.arange(num_rows) if everyone else rng.choice(num_rows, NUM_QUERIES, replace=False)
        np.save(folder / "exact.npy", exact_pairs(folder, np.sort(queries)))
    figures = json.loads(Path(f"{out}.json").read_text())
    found, exact = np.load(f"{out}.npy"), np.load(folder / "exact.npy")
    figures |= recalls(folder, found, exact, num_rows) | {"num_rows": num_rows, "threads": threads}
    print(json.dumps(figures), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write dedup.md")
    parser.add_argument("--tiny", action="store_true", help="few rows, to see that it runs")
    parser.add_argument("--imagededup", type=Path, help="a Python that has imagededup")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "dedup", help="what it leaves")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one, options.data, options.threads, options.out)
        return
    at, found = machine(), []
    for num_rows in TINY_SIZES if options.tiny else SIZES:
        folder = options.folder.resolve() / str(num_rows)
        subprocess.run(
            [
                sys.executable,
                "-c",
                f"import sys; sys.path.insert(0, {str(HERE)!r}); from pathlib import Path; "
                f"import dedup; dedup.write_data(Path({str(folder)!r}), {num_rows})",
            ],
            check=True,
        )
        systems = [name for name in SYSTEMS if num_rows <= LARGEST.get(name, num_rows)]
        found += [measure(name, num_rows, folder, options.threads) for name in systems]
        if options.imagededup and num_rows == SIZES[0]:
            found.append(imagededup(options.imagededup, folder, num_rows))
    page = markdown({"machine": at, "figures": found, "tiny": options.tiny})
    print(page)
    if options.write:
        (HERE / "dedup.md").write_text(page)


def imagededup(python: Path, folder: Path, num_rows: int) -> dict[str, Any]:
    """imagededup's CNN search over the same vectors, as its encoding map; it compares all pairs in memory."""
    out = folder / "imagededup"
    if not Path(f"{out}.json").exists():
        subprocess.run([python, HERE / "dedup_imagededup.py", folder, out], check=True)
    figures = json.loads(Path(f"{out}.json").read_text())
    found, exact = np.load(f"{out}.npy"), np.load(folder / "exact.npy")
    return figures | recalls(folder, found, exact, num_rows) | {"num_rows": num_rows}


if __name__ == "__main__":
    main()
