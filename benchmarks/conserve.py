"""No row is lost: a long list with planted faults is fetched, the run is killed several times and goes on.

    python benchmarks/conserve.py                    # 200,000 rows, 4 kills
    python benchmarks/conserve.py --rows 2000 --kills 1 --local

The texts are the 25,833 real alt-texts of shared data (CC3M validation and LAION), resampled; every URL is its own. At the
end each id of the list must be in the output or in the rejects, once, and each planted fault must have its code. Prints
what it counted as JSON; exit 1 when something differs. The server keeps count: what was committed is not asked for again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from image_server import image_server
from PIL import Image

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.common.row import RowIds
from vlpipe.stages.lists.list import read_pairs

HERE = Path(__file__).parent
NUM_HOSTS = 50
# Kind -> share of the rows; the rest is good. A timeout costs seconds: few of them.
FAULTS = {
    "http_404": 0.03,
    "http_410": 0.005,
    "http_500": 0.002,
    "truncated": 0.01,
    "not_an_image": 0.01,
    "empty": 0.002,
    "opt_out": 0.005,
    "too_many_redirects": 0.001,
    "forbidden_address": 0.001,
    "too_large": 0.001,
    "disconnected": 0.001,
    "timeout": 0.0002,
}
BAD_URLS = {"no_url": "", "bad_url": "file:///etc/passwd"}
WORKFLOW = """
name: conserve
steps:
  images:
    use: "loopback_stage:LoopbackImages"
    list: {list}
    ports: {ports}
    shard_rows: {shard_rows}
    concurrency: 64
    per_host: 16
    backoff_s: 0.01
    timeout_s: 3
    read_timeout_s: 2
"""


def alt_texts(data: Path) -> list[str]:
    """All 25,833, empty ones too."""
    cc3m = read_pairs(
        str(data / "alttext/cc3m_validation.tsv"), url="url", text="text", columns=("text", "url")
    )
    laion = read_pairs(str(data / "alttext/laion_10000.parquet"), url="URL", text="TEXT")
    return [pair.text for pairs in (cc3m, laion) for pair in pairs]


def make_list(folder: Path, texts: list[str], num_rows: int) -> dict[str, str]:
    """Write list.parquet; id -> the kind of what was planted."""
    rng = random.Random(0)
    names, weights = list(FAULTS), list(FAULTS.values())
    drawn = rng.choices(["good", *names], [1 - sum(weights), *weights], k=num_rows)
    for place, kind in zip(
        rng.sample(range(num_rows), 2 * len(BAD_URLS)), [*BAD_URLS, *BAD_URLS], strict=True
    ):
        drawn[place] = kind
    spoken = rng.choices(texts, k=num_rows)
    urls = [
        BAD_URLS.get(kind, f"http://host{rng.randrange(NUM_HOSTS)}.test/{kind}/{n}.jpg")
        for n, kind in enumerate(drawn)
    ]
    pq.write_table(pa.table({"url": urls, "text": spoken}), folder / "list.parquet")
    ids = RowIds("web")
    return {ids.next(url, text): kind for url, text, kind in zip(urls, spoken, drawn, strict=True)}


class Runs:
    """`vlpipe run`, killed and started again."""

    def __init__(self, folder: Path, local: bool) -> None:
        self.folder, self.root = folder, folder / "root"
        self.command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "run", str(folder / "w.yaml")]
        self.command += ["--root", str(self.root), *(["--local"] if local else [])]
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        self.env = {**os.environ, "PYTHONPATH": path}

    def start(self) -> subprocess.Popen[bytes]:
        log = open(self.folder / "log.txt", "ab")  # noqa: SIM115  # it belongs to the process
        return subprocess.Popen(self.command, env=self.env, stdout=log, stderr=log)

    def num_committed(self) -> int:
        return len(list(self.root.glob("images-*/_receipts/*.json")))

    def kill_at(self, num_shards: int) -> bool:
        """SIGKILL the driver once so many shards are committed; False when it was done before."""
        process = self.start()
        while self.num_committed() < num_shards and process.poll() is None:
            time.sleep(0.05)
        time.sleep(random.Random(num_shards).random())  # somewhere within a shard
        if process.poll() is not None:
            return False
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True

    def finish(self) -> int:
        return self.start().wait()


def count(root: Path, planted: dict[str, str]) -> dict[str, Any]:
    """Compare what was planted with what lies on disk."""
    (step,) = root.glob("images-*")
    out: Counter[str] = Counter()
    codes: dict[str, list[str]] = {}
    for shard in sorted(step.glob("[0-9]*.parquet")):
        out.update(pq.read_table(shard, columns=["id"])["id"].to_pylist())
    for file in sorted((step / "_rejects").glob("*.parquet")):
        for reject in pq.read_table(file).to_pylist():
            codes.setdefault(reject["id"], []).append(reject["why"])
    found = {id_: ["good"] * num for id_, num in out.items()}
    for id_, why in codes.items():
        found.setdefault(id_, []).extend(why)
    wrong = [(id_, kind, found.get(id_)) for id_, kind in planted.items() if found.get(id_) != [kind]]
    return {
        "rows_in": len(planted),
        "rows_out": out.total(),
        "rejects": dict(sorted(Counter(why for each in codes.values() for why in each).items())),
        "planted": dict(sorted(Counter(planted.values()).items())),
        "lost_or_wrong": len(wrong),
        "made_up": len(found.keys() - planted.keys()),
        "first_wrong": wrong[:3],
        "ids_sha256": hashlib.sha256("".join(sorted(out)).encode()).hexdigest(),
    }


def conserve(
    folder: Path, data: Path, num_rows: int, num_kills: int, local: bool, shard_rows: int
) -> dict[str, Any]:
    photos = folder / "photos"
    photos.mkdir(parents=True)
    Image.linear_gradient("L").resize((48, 40)).convert("RGB").save(photos / "small.jpg")
    planted = make_list(folder, alt_texts(data), num_rows)
    began = time.monotonic()
    with image_server(photos) as port:
        ports = json.dumps({f"host{n}.test": port for n in range(NUM_HOSTS)})
        settings = {"list": folder / "list.parquet", "ports": ports, "shard_rows": shard_rows}
        (folder / "w.yaml").write_text(WORKFLOW.format(**settings))
        runs = Runs(folder, local)
        num_shards = -(-num_rows // shard_rows)
        kills = sum(runs.kill_at(num_shards * k // (num_kills + 1)) for k in range(1, num_kills + 1))
        if code := runs.finish():
            raise VlpipeError(f"the last run ended with {code}: {(folder / 'log.txt').read_text()[-2000:]}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/asked") as said:
            asked = json.load(said)
    # A 5xx, a timeout and a hang-up are asked for twice, a redirect loop 6 times.
    least = sum(num for kind, num in Counter(planted.values()).items() if kind not in BAD_URLS)
    found = count(runs.root, planted)
    return {
        **found,
        "kills": kills,
        "requests": sum(asked.values()) - 1,
        "urls": least,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--shard-rows", type=int, default=5000)
    parser.add_argument("--local", action="store_true", help="as of `vlpipe run`: no Ray")
    options = parser.parse_args()
    data = Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data")
    if not (data / "alttext").exists():
        print("skipped: no alttext in VLPIPE_DATA or ../shared/data")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = conserve(Path(folder), data, options.rows, options.kills, options.local, options.shard_rows)
    print(json.dumps(found, indent=1))
    return int(bool(found["lost_or_wrong"] or found["made_up"] or found["kills"] != options.kills))


if __name__ == "__main__":
    sys.exit(main())
