"""The world's files: equal for equal seeds, truth apart from what training reads, planted faults real."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.demo.broken import BOMB_SIDE_PX, bomb_png
from vlpipe.stages.demo.check_text import right
from vlpipe.stages.demo.noise import KINDS, _altered
from vlpipe.stages.demo.scenes import draw_scene
from vlpipe.stages.demo.world import URL, World
from vlpipe.stages.ground_truth.filter import scene_of

SMALL = {
    "num_web": 120,
    "num_human": 6,
    "num_eval": 4,
    "duplicates": 0.2,
    "dead": 0.05,
    "corrupt": 0.1,
    "two_things": 0.2,
}


def make(folder: Path, **more: float) -> Path:
    return run_gather(World(**{**SMALL, **more}), [], folder, say=lambda _: None).artifacts


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("world"))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def file_of(world: Path, row: dict[str, str]) -> Path:
    return world / "images" / row["url"].removeprefix(URL)


@pytest.mark.slow
def test_same_seed_same_bytes_another_seed_other_pictures(world: Path, tmp_path: Path) -> None:
    assert digests(make(tmp_path / "again")) == digests(world)
    other = digests(make(tmp_path / "other", seed=1))
    assert not {v for k, v in other.items() if "web_" in k} & {
        v for k, v in digests(world).items() if "web_" in k
    } - {hashlib.sha256(bomb_png()).hexdigest()} - {
        v
        for k, v in other.items()
        if (tmp_path / "other/artifacts" / k).read_bytes().startswith(b"<!DOCTYPE")
    }


def test_the_list_has_no_truth_in_it(world: Path) -> None:
    listed = pq.read_table(world / "web.parquet")
    assert listed.schema.names == ["url", "text"]
    assert listed.num_rows == 120 + 24 + 1
    assert len(set(listed["url"].to_pylist())) == listed.num_rows


def test_texts_are_as_right_as_the_truth_says(world: Path) -> None:
    rows = pq.read_table(world / "truth.parquet").to_pylist()
    for row in rows:
        assert right(row["text"], scene_of(row)) == row["right"] == (row["noise"] is None), row
    assert 0.35 < np.mean([row["right"] for row in rows]) < 0.65
    assert {row["noise"] for row in rows} == {None, *KINDS}


def test_a_wrong_attribute_is_one_change_of_the_scene() -> None:
    rng, changed = np.random.default_rng(0), Counter[str]()
    for _ in range(200):
        scene = draw_scene(rng, two_things=0.5)
        other = _altered(scene, rng)
        assert len(scene.things) == len(other.things)
        names = ["ground"] if other.ground != scene.ground else []
        for one, two in zip(scene.things, other.things, strict=True):
            names += [name for name, value in asdict(one).items() if asdict(two)[name] != value]
        assert len(names) == 1
        changed.update(names)
    assert changed.keys() == {"shape", "colour", "size", "place", "ground"}
    assert min(changed.values()) >= 20


def test_planted_copies(world: Path) -> None:
    rows = [row for row in pq.read_table(world / "truth.parquet").to_pylist() if row["group"] is not None]
    pairs: dict[int, dict[str, dict[str, str]]] = {}
    for row in rows:
        pairs.setdefault(row["group"], {})["original" if row["copy"] == "original" else "copy"] = row
    assert len(pairs) == 24
    for pair in pairs.values():
        one, two = file_of(world, pair["original"]).read_bytes(), file_of(world, pair["copy"]).read_bytes()
        if pair["copy"]["copy"] == "exact":
            assert one == two
            continue
        first, second = (
            np.asarray(Image.open(io.BytesIO(b)).convert("RGB"), dtype=float) for b in (one, two)
        )
        assert one != two
        assert min(np.abs(first - np.roll(second, turn, axis=1)).mean() for turn in (0, -1, 1)) < 16


def test_every_fault_is_real(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000_000)
    rows = pq.read_table(world / "truth.parquet").to_pylist()
    by_fault = {
        fault: [r for r in rows if r["fault"] == fault]
        for fault in (None, "dead", "truncated", "html", "bomb")
    }
    assert {fault: len(found) for fault, found in by_fault.items() if fault} == {
        "dead": 6,
        "truncated": 9,
        "html": 3,
        "bomb": 1,
    }
    for row in by_fault[None]:
        Image.open(file_of(world, row)).load()
    assert not any(file_of(world, row).exists() for row in by_fault["dead"])
    assert all(file_of(world, row).read_bytes().startswith(b"<!DOCTYPE html>") for row in by_fault["html"])
    for row in by_fault["truncated"]:
        with pytest.raises(OSError, match="truncated"):
            Image.open(file_of(world, row)).load()
    with pytest.raises(Image.DecompressionBombError):
        Image.open(file_of(world, by_fault["bomb"][0]))


def test_the_bomb_is_small_and_announces_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    data = bomb_png()
    assert len(data) < 200_000
    assert Image.open(io.BytesIO(data)).size == (BOMB_SIDE_PX, BOMB_SIDE_PX)


def test_human_captions_are_coco(world: Path) -> None:
    train, held_out = (json.loads((world / f"human_{part}.json").read_text()) for part in ("train", "eval"))
    assert (len(train["images"]), len(held_out["images"]), len(train["annotations"])) == (6, 4, 30)
    assert {a["image_id"] for a in train["annotations"]} == {i["id"] for i in train["images"]}
    names = [image["file_name"] for part in (train, held_out) for image in part["images"]]
    assert len(set(names)) == 10
    for name in names:
        Image.open(world / "images" / name).load()
