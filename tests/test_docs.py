"""The pages of docs/ build without a warning, and each command in a `sh` block of theirs ends well.

The commands run beside a finished root of the main job at a small size.
"""

from __future__ import annotations

import re
import shlex
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
TRAINED = ("pretrain", "captioner", "matcher")
SMALL: dict[str, dict[str, Any]] = {
    "world": {"num_web": 120, "num_human": 40, "num_eval": 16},
    "images": {"shard_rows": 50},
    **{name: {"steps": 6, "warmup_steps": 2, "batch_size": 16} for name in TRAINED},
    "filtered": {"threshold": 0.2},
    "retrieval_before": {"k_test": 10},
    "retrieval_after": {"k_test": 10},
}


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def vlpipe(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    assert program == "vlpipe", command
    found = [sorted(map(str, folder.glob(one))) if "*" in one else [one] for one in arguments]
    call = [sys.executable, "-m", "vlpipe.pipeline.cli.main", *(one for each in found for one in each)]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory as the pages assume it, with the main job done at a small size."""
    found = tmp_path_factory.mktemp("docs")
    (found / "workflows").mkdir()
    small = yaml.safe_load((ROOT / "workflows/blip_capfilt.yaml").read_text())
    for step, changes in SMALL.items():
        small["steps"][step].update(changes)
    (found / "workflows/blip_capfilt.yaml").write_text(yaml.safe_dump(small, sort_keys=False))
    (found / "pairs.tsv").write_text("url\ttext\nhttp://a.test/1.jpg\ta dog\n")
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
