"""The curation workflow on a small list: what is dropped, why, and what the tars hold."""

import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

WORKFLOW = str(Path(__file__).parents[2] / "workflows" / "curate.yaml")
GOOD = "a brown dog runs across the green grass with a stick"


def photo(seed: int, width: int = 320, height: int = 240) -> bytes:
    """Smooth and different for each seed, so that pHash tells them apart."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def listed(folder: Path) -> list[tuple[str, str]]:
    """(file, text): 12 good ones, a twin with another text, and one for each rule."""
    images = {f"good{n}.png": photo(n) for n in range(12)}
    images |= {"twin.png": photo(3), "small.png": photo(50, 320, 150), "strip.png": photo(51, 1000, 250)}
    images |= {name: photo(60 + n) for n, name in enumerate(("german.png", "short.png"))}
    images |= {f"shop{n}.png": photo(80 + n) for n in range(11)} | {
        f"gap{n}.png": photo(99) for n in range(12)
    }
    for name, data in images.items():
        (folder / name).write_bytes(data)
    texts = {f"good{n}.png": f"{GOOD} on day number {n}" for n in range(12)}
    texts |= {"twin.png": "the very same dog is running on the lawn", "short.png": "dog"}
    texts |= {"small.png": GOOD, "strip.png": GOOD}
    texts["german.png"] = "ein brauner Hund läuft mit einem Stock über die grüne Wiese"
    texts |= {f"shop{n}.png": "the best price for all of our summer shoes" for n in range(11)}
    texts |= {f"gap{n}.png": f"listing number {n}, a blue sofa in good shape" for n in range(12)}
    return [*texts.items(), ("gone.png", GOOD)]


def vlpipe(*args: str) -> str:
    call = [sys.executable, "-m", "vlpipe.pipeline.cli.main", *args]
    done = subprocess.run(call, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_is_dropped_and_what_is_packed(tmp_path: Path) -> None:
    folder, root = tmp_path / "images", tmp_path / "root"
    folder.mkdir()
    pairs = listed(folder)
    urls = [f"http://demo.test/{name}" for name, _ in pairs]
    pq.write_table(pa.table({"url": urls, "text": [text for _, text in pairs]}), tmp_path / "pairs.parquet")
    sets = (f"images.list={tmp_path / 'pairs.parquet'}", f"images.serve={{demo.test: {folder}}}")
    where = ["--root", str(root), *(part for one in sets for part in ("--set", one))]
    vlpipe("run", WORKFLOW, "--local", *where)
    steps = {
        one.name: one for one in plan(Workflow.load(WORKFLOW, sets=sets, root=str(root)), Store(str(root)))
    }
    rejects: Counter[str] = Counter()
    for one in steps.values():
        assert one.manifest is not None
        rejects.update(one.manifest.rejects)
    assert rejects == {
        "fault:http_404": 1,
        "filtered:min_side": 1,
        "filtered:aspect_ratio": 1,
        "filtered:no_text_kept": 13,  # german, short, and 11 times the same text
        "filtered:exact_duplicate": 12,  # the twin, and the copies of the placeholder
        "filtered:placeholder": 1,
    }
    judged = steps["judged"].manifest
    assert judged is not None
    assert {name: judged.counts[f"fails:{name}"] for name in ("english", "seen_often")} == {
        "english": 1,  # the German one
        "seen_often": 11,
    }

    def why(name: str) -> str:
        return " ".join(vlpipe("why", WORKFLOW, f"http://demo.test/{name}", *where).split())

    assert "judged dropped, filtered: min_side (min_side 150, wanted >= 200)" in why("small.png")
    assert "no_text_kept (web: seen_often (text_count 11, wanted <= 10))" in why("shop0.png")
    twin = why("twin.png")
    assert "dropped, filtered: exact_duplicate (duplicate of" in twin
    assert "(http://demo.test/good3.png), similarity 1.000; its text was added to row" in twin
    assert "- text:" not in twin, "no decision takes a text away"
    best = why("good3.png")
    assert "gained: + text: the very same dog is running on the lawn, source: web" in best
    assert "(http://demo.test/twin.png)]" in best, "the donor is named"
    with tarfile.open(root / steps["tars"].folder / "artifacts" / "000000.tar") as tar:
        packed = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    about = [json.loads(data) for name, data in packed.items() if name.endswith(".json")]
    assert sorted(one["url"].rpartition("/")[2] for one in about) == sorted(f"good{n}.png" for n in range(12))
    merged = next(data for name, data in packed.items() if name.endswith(".txt") and b"lawn" in data)
    assert merged.decode().split("\n") == [
        f"{GOOD} on day number 3",
        "the very same dog is running on the lawn",
    ]
