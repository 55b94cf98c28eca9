"""A generated raw_caption.json is streamed: by the reader alone, and by the whole listing step into shards on disk.

    python benchmarks/howto100m_stream.py                 # 2 GB
    python benchmarks/howto100m_stream.py --gigabytes 0.05

The videos are like HowTo100M's: 110 cues each on average, 4 seconds and 12 words with stop words, words repeated from cue to
cue, now and then a NaN; one in a hundred is not in the list, and one in a hundred of the list has no captions. Each part
runs in a process of its own; peak RSS is VmHWM of that process. Prints JSON; exit 1 when a part takes `--max-rss-mb`
or a row is lost. Needs the size of the JSON in free disk space, and for the shards about a tenth more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import machine

from vlpipe.pipeline.engine.list_rows import ListRows
from vlpipe.pipeline.engine.worker.gather import GatherTask, run_gather
from vlpipe.pipeline.engine.worker_hooks import WorkerHooks
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.howto100m.captions_json import entries
from vlpipe.stages.howto100m.videos import FOUND, HowTo100M

WORDS = [
    f"{a}{b}"
    for a in ("sa", "stir", "on", "cut", "the", "and", "now", "wa")
    for b in ("lt", "", "ion", "ter", "s")
]
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def generate(folder: Path, num_bytes: int, seed: int) -> dict[str, int]:
    """raw_caption.json and HowTo100M_v1.csv; how many videos each has, and how many both."""
    rng = random.Random(seed)
    written = num = both = 0
    with open(folder / "raw_caption.json", "w") as captions, open(folder / "HowTo100M_v1.csv", "w") as videos:
        videos.write("video_id,category_1,category_2,rank,task_id\n")
        written += captions.write("{")
        while written < num_bytes:
            video_id = "".join(rng.choices(ALPHABET, k=11))
            written += captions.write(", " * (num > 0) + f'"{video_id}": {json.dumps(one_video(rng))}')
            num += 1
            if num % 100:
                both += 1
                videos.write(
                    f"{video_id},Food and Entertaining,Recipes,{rng.randint(1, 200)},{rng.randint(1, 23611)}\n"
                )
            if num % 100 == 50:
                videos.write(f"{''.join(rng.choices(ALPHABET, k=11))},Hobbies and Crafts,Crafts,7,42\n")
        captions.write("}")
    return {"captions": num, "both": both, "listed_only": (num + 50) // 100}


def one_video(rng: random.Random) -> dict[str, list[Any]]:
    """Parallel lists, as `json.dump` of Python writes them; each cue begins with the end of the one before."""
    num_cues = max(1, int(rng.expovariate(1 / 110)))
    texts: list[Any] = []
    before: list[str] = []
    for _ in range(num_cues):
        new = rng.choices(WORDS, k=8)
        texts.append(" ".join(before + new) if rng.random() > 0.001 else float("nan"))
        before = new[-4:]
    starts = [round(4.0 * n + rng.random(), 2) for n in range(num_cues)]
    return {"start": starts, "end": [round(one + 5.0, 2) for one in starts], "text": texts}


def measure(part: str, folder: Path) -> dict[str, Any]:
    """In a process of its own."""
    begin = time.monotonic()
    rows = {"read": _read, "list": _list}[part](folder)
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found
    return {**rows, "seconds": round(time.monotonic() - begin, 1), "peak_rss_mb": int(found[1]) // 1024}


def _read(folder: Path) -> dict[str, int]:
    num_videos = num_cues = 0
    with open(folder / "raw_caption.json", "rb") as handle:
        for _, value in entries(handle, "raw_caption.json"):
            num_videos += 1
            num_cues += len(value["text"])
    return {"videos": num_videos, "cues": num_cues}


def _list(folder: Path) -> dict[str, int]:
    """What `vlpipe run` does first: the rows with their captions, in shards."""
    stage = HowTo100M(
        videos=str(folder),
        list=ListFile(path=str(folder / "HowTo100M_v1.csv")),
        captions=ListFile(path=str(folder / "raw_caption.json")),
    )
    task = GatherTask(
        hooks=WorkerHooks(),
        store=Store(str(folder / "root")),
        step="videos.list",
        stage=ListRows(source=stage),
        inputs=(),
        schema_out=FOUND,
        folder="videos.list-00000000",
        inputs_digest="0" * 8,
    )
    receipts = run_gather(task).receipts
    return {
        "rows": sum(r.shard.num_rows for r in receipts),
        "shards": len(receipts),
        "shard_mb": sum(r.bytes for r in receipts) >> 20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--max-rss-mb", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]))))
        return
    at = machine()
    with tempfile.TemporaryDirectory(prefix="howto100m-") as name:
        begin = time.monotonic()
        made = generate(Path(name), int(args.gigabytes * 1e9), args.seed)
        size_mb = os.path.getsize(f"{name}/raw_caption.json") / 1e6
        result: dict[str, Any] = {"machine": at, "json_mb": round(size_mb), "made": made}
        result["generate_seconds"] = round(time.monotonic() - begin, 1)
        for part in ("read", "list"):
            command = [sys.executable, __file__, "--measure", part, name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result[part] = json.loads(done.stdout.splitlines()[-1])
            result[part]["mb_per_second"] = round(size_mb / result[part]["seconds"], 1)
    print(json.dumps(result, indent=1))
    whole = (
        result["list"]["rows"] == made["captions"] + made["listed_only"]
        and result["read"]["videos"] == made["captions"]
    )
    small = max(result[part]["peak_rss_mb"] for part in ("read", "list")) < args.max_rss_mb
    sys.exit(0 if whole and small else 1)


if __name__ == "__main__":
    main()
