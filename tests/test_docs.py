"""The pages of docs/ build without a warning, and each command in a `sh` block of theirs ends well.

The commands run beside a finished root of the main job at a small size.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "reference" not in path.parts and path.name != "log.md")
pytestmark = pytest.mark.timeout(900)  # the first test also runs the small job
TRAINED = ("pretrain", "captioner", "matcher")
SMALL: dict[str, dict[str, Any]] = {
    "world": {"num_web": 120, "num_human": 40, "num_eval": 16},
    "images": {"shard_rows": 50},
    **{name: {"steps": 6, "warmup_steps": 2, "batch_size": 16} for name in TRAINED},
    "retrieval_before": {"k_test": 10},
    "retrieval_after": {"k_test": 10},
}


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def vlpipe(command: str, folder: Path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    assert program == "vlpipe", command
    found = [sorted(map(str, folder.glob(one))) if "*" in one else [one] for one in arguments]
    call = [sys.executable, "-m", "vlpipe.pipeline.cli.main", *(one for each in found for one in each)]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory as the pages assume it, with the main job done at a small size."""
    found = tmp_path_factory.mktemp("docs")
    (found / "workflows").mkdir()
    small = yaml.safe_load((ROOT / "workflows/blip_capfilt.yaml").read_text())
    for step, changes in SMALL.items():
        small["steps"][step].update(changes)
    file = found / "workflows/blip_capfilt.yaml"
    file.write_text(yaml.safe_dump(small, sort_keys=False))
    (found / "pairs.tsv").write_text("url\ttext\nhttp://a.test/1.jpg\ta dog\n")
    # Models this small judge all texts alike: the threshold is then the median of what they say.
    done = vlpipe("vlpipe run workflows/blip_capfilt.yaml --local --until filtered@1", found)
    assert done.returncode == 0, done.stderr
    (judged,) = (found / "runs/blip_capfilt").glob("filtered@1-*")
    tables = [pq.read_table(one, columns=["texts"]) for one in sorted(judged.glob("[0-9]*.parquet"))]
    scores = [text["score"] for one in tables for row in one["texts"].to_pylist() for text in row]
    shutil.rmtree(judged)
    small["steps"]["filtered"]["threshold"] = sorted(scores)[len(scores) // 2]
    file.write_text(yaml.safe_dump(small, sort_keys=False))
    done = vlpipe("vlpipe run workflows/blip_capfilt.yaml --local", found)
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=lambda page: str(page.relative_to(DOCS))
)
def test_the_commands_of_a_page_end_well(page: Path, folder: Path) -> None:
    (kept,) = (folder / "runs/blip_capfilt").glob("kept@1-*")
    row = pq.read_table(next(kept.glob("*.parquet")), columns=["id"])["id"][0].as_py()
    for command in commands(page):
        done = vlpipe(command.replace("ROW", row), folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), command


@pytest.mark.slow
def test_from_a_finished_demo_to_why_this_images_caption_was_dropped(folder: Path) -> None:
    """By README's commands alone, as they stand: ROW is what the first one shows. Each ends within a minute and a half."""
    show, why = commands(ROOT / "README.md")
    shown = vlpipe(show, folder, timeout=90).stdout
    row_id, said, score = re.search(
        r"^id +(\w{64}) *$.*?text: ([^\n]*?), source: web, score: ([\d.e-]+), kept: false, why: not_matched",
        shown,
        re.M | re.S,
    ).groups()  # type: ignore[union-attr]
    url = re.search(rf"^id +{row_id} *\nurl +(\S+)", shown, re.M)[1]  # type: ignore[index]
    for row in (row_id, url):
        told = vlpipe(why.replace("ROW", row), folder, timeout=90).stdout
        assert f"+ url: {url}" in told  # where it is from
        dropped = rf"~ '{re.escape(said)}': score null -> {re.escape(score)}, kept null -> false, why null -> not_matched"
        assert re.search(dropped, told)  # what was dropped, and its score
        assert re.search(r"by filter.itm:ItmFilter: threshold [\d.]+, model of matcher@1", told)  # by what


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    call = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path),
    ]
    done = subprocess.run(call, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    export = (tmp_path / "reference/export.html").read_text()
    assert '<section id="export-huggingface-writehuggingface">' in export
    pages = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html")}
    assert {"quickstart.html", "how_to/own_list.html", "systems.html", "changelog.html"} <= pages
    remote = [
        (page, one)
        for page in sorted(pages)
        for one in re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)', (tmp_path / page).read_text()
        )
    ]
    assert remote == []  # nothing is loaded from elsewhere
