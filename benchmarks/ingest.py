"""Fetching beside img2dataset 1.47: images per second, CPU seconds per image, rows that come out.

    python benchmarks/ingest.py            # about 15 minutes on 2 cores; --peer: another Python for img2dataset
    python benchmarks/ingest.py --write    # and puts the page into ingest.md beside this file
    python benchmarks/ingest.py --tiny     # few images, its figures mean nothing

Real photos (flickr8k, 160 x 160; and the same scaled to 640 x 480) come from a server in a process of its own, pinned to
core 0; whichever tool is measured has core 1 to itself, with one worker and 64 requests at once. A time is that of the
whole command, start-up included; CPU seconds are those of its processes. Each measurement is made three times, the tools
in turn; the page has the medians. "Start" is the CPU time of a run over 100 images; what each further image costs is
reckoned from both runs. All guards of ours are on; img2dataset has none of them to turn on. Its webdataset imports torch
where that is installed, which takes seconds of its start: a --peer without torch is the fair comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from image_server import image_server
from PIL import Image
from record import machine, machine_line, table

HERE = Path(__file__).parent
SERVER_CORE, TOOL_CORE = 0, 1
FEW = 100  # images, for the cost of the start
CONCURRENCY, SIZE, QUALITY = 64, 128, 95
WORKFLOW = """
name: ingest
steps:
  images:
    use: "loopback_stage:LoopbackImages"
    list: {list}
    ports: {{photos.test: {port}}}
    shard_rows: 10000
    concurrency: {concurrency}
    per_host: {concurrency}
    {resize}
"""


def run(command: list[str], env: dict[str, str], log: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a command, pinned to the tool's core; RuntimeError when it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with open(log, "ab") as out:
        code = subprocess.call(["taskset", "-c", str(TOOL_CORE), *command], env=env, stdout=out, stderr=out)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise RuntimeError(f"{command[0]} ended with {code}: {log.read_text(errors='replace')[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours(folder: Path, listed: Path, port: int, resize: bool) -> tuple[float, float, int]:
    """Wall and CPU seconds, rows with an image."""
    asked = f"resize: {{size: {SIZE}, mode: keep_ratio, quality: {QUALITY}}}" if resize else ""
    text = WORKFLOW.format(list=listed, port=port, concurrency=CONCURRENCY, resize=asked)
    (folder / "w.yaml").write_text(text)
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "run", str(folder / "w.yaml"), "--local"]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    root = folder / "root"
    wall, cpu = run([*command, "--root", str(root)], {**os.environ, "PYTHONPATH": path}, folder / "log.txt")
    return wall, cpu, sum(pq.read_metadata(p).num_rows for p in root.glob("images-*/[0-9]*.parquet"))


def theirs(folder: Path, listed: Path, peer: str, resize: bool) -> tuple[float, float, int]:
    options: dict[str, Any] = {
        "url_list": str(listed),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "text",
        "output_folder": str(folder / "out"),
        "output_format": "parquet",
        "processes_count": 1,
        "thread_count": CONCURRENCY,
        "number_sample_per_shard": 10000,
        "enable_wandb": False,
    }
    if resize:
        more = {
            "image_size": SIZE,
            "resize_mode": "keep_ratio",
            "resize_only_if_bigger": True,
            "encode_quality": QUALITY,
        }
    else:
        more = {"resize_mode": "no", "disable_all_reencoding": True}
    command = [peer, str(HERE / "ingest_peer.py"), json.dumps({**options, **more})]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    wall, cpu = run(command, {**env, "NO_ALBUMENTATIONS_UPDATE": "1"}, folder / "log.txt")
    shards = [pq.read_table(path, columns=["status"]) for path in (folder / "out").glob("*.parquet")]
    return wall, cpu, sum(shard["status"].to_pylist().count("success") for shard in shards)


def write_list(path: Path, names: list[str], host: str, num_rows: int) -> Path:
    urls = [f"http://{host}/photos/{names[n % len(names)]}?{n}" for n in range(num_rows)]
    pq.write_table(pa.table({"url": urls, "text": [f"photo {n}" for n in range(num_rows)]}), path)
    return path


def measure(folder: Path, photos: Path, peer: str, num_rows: int, times: int) -> list[dict[str, Any]]:
    """One entry per tool and mode."""
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    found: dict[tuple[str, bool, int], list[tuple[float, float, int]]] = {}
    with image_server(photos, SERVER_CORE) as port:
        for num in [FEW, num_rows] * times:
            mine = write_list(folder / "mine.parquet", names, "photos.test", num)
            other = write_list(folder / "other.parquet", names, f"127.0.0.1:{port}", num)
            for resize in (True, False):
                for tool in ("vlpipe", "img2dataset"):
                    with tempfile.TemporaryDirectory(dir=folder) as here:
                        at = Path(here)
                        got = (
                            ours(at, mine, port, resize)
                            if tool == "vlpipe"
                            else theirs(at, other, peer, resize)
                        )
                    found.setdefault((tool, resize, num), []).append(got)
    return [
        {
            "tool": tool,
            "resize": resize,
            "rows": num_rows,
            "images": min(images for _, _, images in runs),
            "seconds": statistics.median(wall for wall, _, _ in runs),
            "cpu_seconds": statistics.median(cpu for _, cpu, _ in runs),
            "start_cpu_seconds": statistics.median(cpu for _, cpu, _ in found[tool, resize, FEW]),
        }
        for (tool, resize, num), runs in found.items()
        if num == num_rows
    ]


def scaled(photos: Path, to: Path, num: int) -> Path:
    """The first photos at 640 x 480."""
    to.mkdir()
    for n, path in enumerate(sorted(photos.rglob("*.jpg"))[:num]):
        with Image.open(path) as image:
            image.resize((640, 480), Image.Resampling.BICUBIC).save(to / f"{n:05d}.jpg", quality=90)
    return to


def losses(folder: Path, photos: Path, peer: str) -> list[tuple[str, int, str, str]]:
    """Inputs on which img2dataset loses rows: rows in, what it says and what it wrote, what we wrote."""
    name = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))[0]
    found = []
    with image_server(photos) as port:
        for case, write in CASES.items():
            with tempfile.TemporaryDirectory(dir=folder) as here:
                at = Path(here)
                mine = write(at, f"http://photos.test/photos/{name}")
                other = write(at / "peer", f"http://127.0.0.1:{port}/photos/{name}")
                found.append((case, 2, _peer_said(at, other, peer), _we_said(at, mine, port)))
    return found


def _latin1(folder: Path, url: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "list.csv").write_bytes(f"url,text\n{url}?1,a dog\n{url}?2,caf".encode() + b"\xe9\n")
    return folder / "list.csv"


def _datetime(folder: Path, url: str) -> Path:
    folder.mkdir(exist_ok=True)
    when = pa.array([datetime(2024, 1, 1)] * 2)
    pq.write_table(
        pa.table({"url": [f"{url}?1", f"{url}?2"], "text": ["a", "b"], "seen": when}), folder / "list.parquet"
    )
    return folder / "list.parquet"


def _number(folder: Path, url: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "list.jsonl").write_text(
        f'{{"url": "{url}?1", "text": "a"}}\n{{"url": "{url}?2", "text": 7}}\n'
    )
    return folder / "list.jsonl"


CASES = {
    "a csv with one byte that is not UTF-8": _latin1,
    "a Parquet list with a date column": _datetime,
    "JSON lines with a number for a text": _number,
}


def _peer_said(folder: Path, listed: Path, peer: str) -> str:
    out = folder / "out"
    options = {
        "url_list": str(listed),
        "input_format": listed.suffix[1:],
        "url_col": "url",
        "caption_col": "text",
    }
    options |= {
        "output_folder": str(out),
        "output_format": "webdataset",
        "processes_count": 1,
        "thread_count": 4,
    }
    options |= {"enable_wandb": False, "image_size": 64}
    if listed.suffix == ".parquet":
        options["save_additional_columns"] = ["seen"]
    env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    env.pop("PYTHONPATH", None)
    command = [peer, str(HERE / "ingest_peer.py"), json.dumps(options)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    said = [json.loads(path.read_text())["successes"] for path in out.glob("*_stats.json")]
    written = sum(
        b".jpg" in path.read_bytes() and path.read_bytes().count(b".jpg\0") for path in out.glob("*.tar")
    )
    return f"exit {done.returncode}, successes: {sum(said)}, images in its tars: {written}"


def _we_said(folder: Path, listed: Path, port: int) -> str:
    more = "bad_lines: reject" if listed.suffix == ".csv" else ""
    text = WORKFLOW.format(list=listed, port=port, concurrency=4, resize=more)
    (folder / "w.yaml").write_text(text)
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "run", str(folder / "w.yaml"), "--local"]
    done = subprocess.run(
        [*command, "--root", str(folder / "root")], env={**os.environ, "PYTHONPATH": path}, check=False,
        capture_output=True,
    )  # fmt: skip
    rows = sum(pq.read_metadata(p).num_rows for p in folder.glob("root/images-*/[0-9]*.parquet"))
    rejects = [
        f"{row['why']} ({row['detail']})"
        for path in folder.glob("root/images-*/_rejects/*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    return f"exit {done.returncode}, rows: {rows}" + "".join(f", reject: {reject}" for reject in rejects)


def markdown(
    at: dict[str, Any],
    sizes: dict[str, list[dict[str, Any]]],
    lost: list[tuple[str, int, str, str]],
    torch: bool,
) -> str:
    parts = [
        "# Fetching, beside img2dataset 1.47\n",
        __doc__.partition("\n\n")[2].rpartition("\n\n")[2].strip(),
        "",
    ]
    parts += [machine_line(at), "", f"img2dataset's environment has {'' if torch else 'no '}torch.", ""]
    for size, found in sizes.items():
        parts += [f"## {size}\n", table(HEADER, [_line(one, found) for one in found]), ""]
    parts += ["## Rows that go missing\n", table(("input", "rows in", "img2dataset", "vlpipe"), lost), ""]
    return "\n".join(parts)


def _has_torch(python: str) -> bool:
    found = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.call([python, "-c", found]) == 0


HEADER = (
    "", "images", "seconds", "images/s", "CPU ms per image", "start, CPU s", "CPU ms per further image",
    "images/s, vlpipe = 1",
)  # fmt: skip


def _line(one: dict[str, Any], found: list[dict[str, Any]]) -> list[object]:
    own = next(o for o in found if o["tool"] == "vlpipe" and o["resize"] == one["resize"])
    rate = one["images"] / one["seconds"]
    return [
        f"{one['tool']}, {'resized to ' + str(SIZE) if one['resize'] else 'bytes as they came'}",
        f"{one['images']:,} of {one['rows']:,}",
        f"{one['seconds']:.1f}",
        f"{rate:.0f}",
        f"{1000 * one['cpu_seconds'] / max(1, one['images']):.2f}",
        f"{one['start_cpu_seconds']:.1f}",
        f"{1000 * (one['cpu_seconds'] - one['start_cpu_seconds']) / (one['images'] - FEW):.2f}",
        f"{rate / (own['images'] / own['seconds']):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", default=sys.executable, help="a Python that has img2dataset 1.47.0")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--write", action="store_true", help="write ingest.md")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    data = Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data")
    if not (data / "flickr8k").exists():
        print("skipped: no flickr8k in VLPIPE_DATA or ../shared/data")
        return
    at, num_rows, times = machine(), (400 if options.tiny else options.rows), (1 if options.tiny else 3)
    with tempfile.TemporaryDirectory() as here:
        folder, photos = Path(here), data / "flickr8k"
        big = scaled(photos, folder / "big", min(1000, num_rows))
        sizes = {
            "160 x 160, 7 KB": measure(folder, photos, options.peer, num_rows, times),
            "640 x 480, 47 KB": measure(folder, big, options.peer, max(200, num_rows // 4), times),
        }
        page = markdown(at, sizes, losses(folder, photos, options.peer), _has_torch(options.peer))
    print(page)
    if options.write:
        (HERE / "ingest.md").write_text(page)


if __name__ == "__main__":
    main()
