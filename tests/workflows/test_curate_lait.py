"""ImageBERT's web recipe on a small list: one pair for each rule, and one image with two texts."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.workflows.test_curate import photo
from vlpipe.models import folder
from vlpipe.models.systems.image_text.clip import Clip
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

WORKFLOW = str(Path(__file__).parents[2] / "workflows" / "curate_lait.yaml")
WORDS = [
    *("a", "brown", "dog", "runs", "over", "the", "green", "meadow", "with", "stick", "on", "day", "number"),
    *("best", "price", "for", "all", "summer", "shoes", "and"),
]
GOOD = "a brown dog runs over the green meadow with a stick"


def listed(path: Path) -> list[tuple[str, str]]:
    """(file, text): six good ones, a second text of one of them, and one for each rule."""
    images = {f"good{n}.png": photo(n, 400, 320) for n in range(6)}
    images |= {"twin.png": images["good3.png"], "small.png": photo(50, 400, 300)}
    others = ("german.png", "short.png", "long.png", "strange.png")
    images |= {name: photo(60 + n, 400, 320) for n, name in enumerate(others)}
    images |= {f"shop{n}.png": photo(80 + n, 400, 320) for n in range(11)}
    for name, data in images.items():
        (path / name).write_bytes(data)
    texts = {f"good{n}.png": f"{GOOD} on day number {n}" for n in range(6)}
    texts |= {"twin.png": "the brown dog runs with a stick", "small.png": GOOD, "short.png": "a dog"}
    texts |= {"german.png": "ein brauner Hund läuft mit einem Stock über die grüne Wiese"}
    texts |= {"long.png": f"{GOOD} and " * 4, "strange.png": "the brown zzyzx qwrtp dog"}
    texts |= {f"shop{n}.png": "the best price for all summer shoes" for n in range(11)}
    return list(texts.items())


@pytest.mark.slow
def test_what_each_rule_drops(tmp_path: Path) -> None:
    images, root = tmp_path / "images", tmp_path / "root"
    images.mkdir()
    pairs = listed(images)
    urls = [f"http://demo.test/{name}" for name, _ in pairs]
    pq.write_table(pa.table({"url": urls, "text": [text for _, text in pairs]}), tmp_path / "pairs.parquet")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([" ".join(WORDS)] * 9, 120)
    sizes = {"width": 16, "layers": 1, "heads": 2}
    model = Clip(
        vocab_size=tokenizer.vocab_size,
        image_size=32,
        patch_size=16,
        max_text_length=64,
        end=tokenizer.end,
        **{f"{tower}_{name}": value for tower in ("vision", "text") for name, value in sizes.items()},  # type: ignore[arg-type]
    )
    folder.save(model, tmp_path / "clip")
    tokenizer.save(tmp_path / "clip" / "tokenizer")
    any_score = "{id: not_related, column: clip_score, op: '>=', value: -2, encoder: matcher}"
    sets = (
        f"images.list={tmp_path / 'pairs.parquet'}",
        f"images.serve={{demo.test: {images}}}",
        f"words.vocabulary={tmp_path / 'vocab.txt'}",
        f"scored.model={tmp_path / 'clip'}",
        f"relevant.rules=[{any_score}]",
    )
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        WORKFLOW,
        "--local",
        "--root",
        str(root),
    ]
    command += [part for one in sets for part in ("--set", one)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = {s.name: s for s in plan(Workflow.load(WORKFLOW, sets=sets, root=str(root)), Store(str(root)))}
    rejects: Counter[str] = Counter()
    for one in steps.values():
        assert one.manifest is not None
        rejects.update(one.manifest.rejects)
    assert rejects == {
        "filtered:min_side": 1,
        "filtered:no_text_kept": 15,  # german, short, long, strange, and 11 times the same text
        "filtered:exact_duplicate": 1,
    }
    judged, best = steps["judged"].manifest, steps["best"].manifest
    assert judged is not None
    assert best is not None
    counts = {
        name: judged.counts[f"drops:{name}"] for name in ("english", "too_short", "too_long", "unknown_words")
    }
    assert counts == {"english": 1, "too_short": 1, "too_long": 1, "unknown_words": 1}
    assert judged.counts["drops:seen_often"] == 11
    assert (best.counts["kept"], best.counts["drops:not_best"]) == (6, 1)  # the twin gave its text
