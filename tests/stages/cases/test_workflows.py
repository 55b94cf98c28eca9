"""Whole workflows of the cases, with the present names of their stages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

Case = Callable[[str], Path]
NOW = {
    "ingest.images:FetchImages": "fetching.images:FetchImages",
    "ingest.videos:Videos": "video_files.videos:Videos",
    "ingest.coco:CocoCaptions": "lists.coco:CocoCaptions",
    "ingest.webdataset:FromWebdataset": "tars.webdataset:FromWebdataset",
    "dedup.decide:Decide": "dedup.redecide:Decide",
}


class Run:
    """A run of a workflow of the cases, in its own folder; `*sets` as of `--set`."""

    def __init__(self, file: Path, folder: Path, *sets: str) -> None:
        text = file.read_text()
        for old, new in NOW.items():
            text = text.replace(old, new)
        self.file, self.root = folder / "workflow.yaml", folder / "root"
        self.file.write_text(text)
        self.sets = [part for one in sets for part in ("--set", one)]
        done = self.call("run", "--local", cwd=file.parent if not (folder / "img").exists() else folder)
        assert done.returncode == 0, done.stdout + done.stderr

    def call(self, verb: str, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", verb, str(self.file), *args]
        command += ["--root", str(self.root), *self.sets]
        return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=cwd)

    def folder(self, step: str) -> Path:
        (found,) = self.root.glob(f"{step}-*")
        return found

    def rows(self, step: str) -> list[dict[str, Any]]:
        files = sorted(path for path in self.folder(step).glob("*.parquet") if path.name[0].isdigit())
        return [row for path in files for row in pq.read_table(path).to_pylist()]


@pytest.mark.slow
def test_a_picture_with_a_second_one_goes_into_the_tars(case: Case, tmp_path: Path) -> None:
    run = Run(case("mpo/w.yaml"), tmp_path)
    assert [row["format"] for row in run.rows("images")] == ["MPO", "JPEG"]
    with tarfile.open(run.folder("tars") / "artifacts" / "000000.tar") as tar:
        packed = {name.partition(".")[2] for name in tar.getnames()}
    assert packed == {"jpg", "json", "txt"}


@pytest.mark.slow
def test_texts_of_a_placeholder_are_not_merged(case: Case, tmp_path: Path) -> None:
    run = Run(case("placeholder/w.yaml"), tmp_path)
    (photo, placeholder) = sorted(run.rows("unique"), key=lambda row: row["image_texts"])
    assert [one["text"] for one in photo["texts"]] == ["a real photo"]
    assert len(placeholder["texts"]) == 1
    assert placeholder["image_texts"] == 200


@pytest.mark.slow
def test_sidecars_are_chosen_by_what_they_are(case: Case, tmp_path: Path) -> None:
    run = Run(case("sidecars/w.yaml"), tmp_path)
    rows = run.rows("videos")
    assert sorted(row["video"] for row in rows) == ["00000_000.mp4", "soup [abc].mp4"]
    for row in rows:
        assert [cue["text"] for cue in row["cues"]] == ["first cut the onion", "then fry it"]


WRITES = """name: tars
steps:
  rows: {use: "lists.captions:CaptionsJsonl", captions: FOLDER/captions.jsonl, images: FOLDER}
  tars: {use: "export.webdataset:WriteWebdataset", from: rows, texts: all}
"""


@pytest.mark.slow
def test_captions_of_a_tar_come_back_as_they_were(case: Case, tmp_path: Path) -> None:
    texts = ["one", "two", "three", "four", "five"]
    for name in ("images", "w", "r"):
        (tmp_path / name).mkdir()
    shutil.copy(case("mpo/plain.jpg"), tmp_path / "images" / "0.jpg")
    (tmp_path / "images" / "captions.jsonl").write_text(json.dumps({"file": "0.jpg", "captions": texts}))
    (tmp_path / "writes.yaml").write_text(WRITES.replace("FOLDER", str(tmp_path / "images")))
    written = Run(tmp_path / "writes.yaml", tmp_path / "w")
    folder = written.folder("tars") / "artifacts"
    back = Run(case("data/texts_all_roundtrip.yaml"), tmp_path / "r", f"back.folder={folder}")
    (row,) = back.rows("back")
    assert [one["text"] for one in row["texts"]] == texts


@pytest.mark.slow
def test_no_caption_has_an_unknown_sign(case: Case, tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    shutil.copy(case("unk/mk.py"), tmp_path)
    subprocess.run([sys.executable, "mk.py"], cwd=tmp_path, check=True, timeout=60)
    run = Run(case("unk/unk.yaml"), tmp_path)
    made = [one["text"] for row in run.rows("captions") for one in row["texts"] if one["source"] != "human"]
    assert len(made) == 96
    assert not [text for text in made if "[" in text]
