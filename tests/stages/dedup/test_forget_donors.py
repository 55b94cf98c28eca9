"""`vlpipe forget` of a row whose caption a twin took: the caption goes with it, from every step, and nothing runs again."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from vlpipe.pipeline.cli import commands
from vlpipe.stages.common.row import text

WORKFLOW = """
name: donors
steps:
  images: {{use: "lists.captions:CaptionsJsonl", captions: {folder}/list.jsonl, images: {folder}, shard_rows: 4}}
  bytes: {{use: "dedup.exact:ExactDuplicates", from: images}}
  decided: {{use: "dedup.redecide:Decide", from: images, edges: {{from: bytes}}, merge_texts: true}}
  unique:
    use: "dedup.apply:DropDuplicates"
    from: images
    decisions: {{from: decided, path: decisions.parquet}}
    merge_texts: true
  cleaned: {{use: "filter.clean:CleanTexts", from: unique, sources: [human]}}
  same: {{use: "text_dedup.texts:TextDuplicates", from: cleaned, sources: [human], threshold: null}}
  texts: {{use: "text_dedup.decisions:DropTexts", from: cleaned, decisions: {{from: same, path: texts.parquet}}}}
  tars: {{use: "export.webdataset:WriteWebdataset", from: texts, texts: all}}
"""
CAPTIONS = {
    "a": ["a brown dog"],
    "a2": ["only   &amp;lt; from the second", "both twins say this", "a brown dog"],
    "a3": ["only from the third", "both twins say this"],
    "b": ["nothing to do with it", "only &lt; from the second"],
    "c": ["a red car"],
}


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


class Done:
    """The workflow, run to its end once."""

    def __init__(self, folder: Path) -> None:
        images = folder / "images"
        images.mkdir(parents=True)
        for name in CAPTIONS:
            (images / f"{name}.png").write_bytes(picture(ord(name[0])))
        lines = [
            json.dumps({"file": f"{name}.png", "captions": captions}) for name, captions in CAPTIONS.items()
        ]
        (images / "list.jsonl").write_text("\n".join(lines))
        self.root, self.file = folder / "root", folder / "w.yaml"
        self.file.write_text(WORKFLOW.format(folder=images))
        self("run", "--local")
        rows = self.rows("images").values()
        self.ids = {
            name: next(r["id"] for r in rows if [t["text"] for t in r["texts"]] == captions)
            for name, captions in CAPTIONS.items()
        }

    def __call__(self, verb: str, *args: str | Path, code: int = 0) -> list[str]:
        given = [str(part) for part in (verb, self.file, *args, "--root", self.root)]
        done = CliRunner().invoke(commands.app, given)
        assert done.exit_code == code, (done.output, done.exception)
        return done.output.splitlines()

    def step(self, name: str) -> Path:
        (found,) = self.root.glob(f"{name}-*")
        return found

    def rows(self, name: str) -> dict[str, dict[str, Any]]:
        tables = [pq.read_table(path) for path in sorted(self.step(name).glob("0*.parquet"))]
        return {row["id"]: row for table in tables for row in table.to_pylist()}

    def forget(self, *ids: str) -> list[str]:
        entries = self.root.parent / "entries.txt"
        entries.write_text("\n".join(f"id:{one}" for one in ids))
        return self("forget", entries, "--yes")

    def traces(self, *needles: str) -> list[str]:
        """Files that hold one of these, in any cell or byte; a tar is read as it is."""
        found = []
        for path in (p for p in self.root.rglob("*") if p.is_file()):
            parquet = path.suffix == ".parquet"
            said = str(pq.read_table(path).to_pylist()).encode() if parquet else path.read_bytes()
            found += [f"{path.relative_to(self.root)}: {n}" for n in needles if n.encode() in said]
        return found


@pytest.fixture
def done(tmp_path: Path) -> Done:
    return Done(tmp_path)


@pytest.mark.slow
def test_a_caption_goes_with_its_last_donor(done: Done) -> None:
    kept = done.ids["a3"]  # ids are hashes of what is listed: it is always this one
    assert {name for name in ("a", "a2", "a3") if done.ids[name] in done.rows("unique")} == {"a3"}
    assert done.traces("a brown dog")
    assert done.traces("from the second")
    done.forget(done.ids["a2"])
    assert done.traces(done.ids["a2"], "&amp;lt; from the second") == []
    own = [text(t, "human") for t in CAPTIONS["a3"]]
    gone = text("", "human", kept=False, why="forgotten")
    assert done.rows("unique")[kept]["texts"] == [*own, gone, text("a brown dog", "human")]
    assert done.rows("unique")[kept]["donors"] == [None, None, [], [done.ids["a"]]]
    done.forget(done.ids["a"])
    assert done.traces(done.ids["a"], "a brown dog") == []
    for name in ("unique", "cleaned", "texts"):
        assert done.rows(name)[kept]["texts"] == [*own, gone, gone]


def test_a_text_that_another_donor_has_stays_and_names_that_one_only(done: Done) -> None:
    done.forget(done.ids["a"])
    assert done.traces(done.ids["a"]) == []
    assert not list(done.root.glob("tars-*")), "an export may name the donor as well"
    row = done.rows("texts")[done.ids["a3"]]
    assert [t["text"] for t in row["texts"]][2:] == ["only < from the second", "a brown dog"]
    assert row["donors"] == [None, None, [done.ids["a2"]], [done.ids["a2"]]]


def test_what_a_text_became_below_goes_as_well_and_an_equal_one_of_another_row_stays(done: Done) -> None:
    before = done.rows("texts")
    assert done.rows("cleaned")[done.ids["a3"]]["alt_raw"][2] == CAPTIONS["a2"][0]
    done.forget(done.ids["a2"])
    after = done.rows("texts")
    for name in ("cleaned", "texts"):
        mine = done.rows(name)[done.ids["a3"]]
        assert not any("second" in str(value) for value in mine.values()), name
        assert len(mine["alt_raw"]) == len(mine["texts"]) == len(mine["donors"])
    assert after[done.ids["c"]] == before[done.ids["c"]]
    assert [t["text"] for t in after[done.ids["b"]]["texts"]] == [CAPTIONS["b"][0], "only < from the second"]
    decided = pq.read_table(done.step("same") / "artifacts" / "texts.parquet").to_pylist()
    assert not any("second" in (r["text"] or "") for r in decided if r["id"] == done.ids["a3"])


def test_nothing_but_the_export_runs_again_and_all_is_as_the_receipts_say(done: Done) -> None:
    said = done.forget(done.ids["a2"])
    assert not list(done.root.glob("tars-*"))
    assert any("the next run rebuilds it" in line for line in said), said
    at = {p: p.read_bytes() for p in done.root.rglob("0*.parquet")}
    done("run", "--local")
    assert {p: p.read_bytes() for p in at} == at
    assert done("run", "--local")[0].startswith("donors: all 9 steps are done, nothing to do")
    checked = CliRunner().invoke(commands.app, ["verify", str(done.root)])
    assert checked.output.splitlines()[-1].endswith("all match their records")
    assert done.traces(done.ids["a2"]) == []
    with tarfile.open(next(done.step("tars").glob("artifacts/*.tar"))) as tar:
        assert not any(done.ids["a2"] in name for name in tar.getnames())


def test_a_shard_made_again_from_what_is_left_is_what_forget_made_of_it(done: Done) -> None:
    done.forget(done.ids["a2"])
    forgot = {p: p.read_bytes() for p in done.step("unique").glob("0*.parquet")}
    (done.step("unique") / "manifest.json").unlink()
    for path in (done.step("unique") / "_receipts").iterdir():
        path.unlink()
    done("run", "--local")
    assert {p: p.read_bytes() for p in forgot} == forgot


def test_why_says_that_a_text_was_forgotten(done: Done) -> None:
    done.forget(done.ids["a2"])
    said = "\n".join(done("why", done.ids["a3"]))
    assert "forgotten" in said, said
    assert done.ids["a2"][:12] not in said


@pytest.mark.slow
def test_it_says_which_rows_stay_dropped_as_duplicates_of_forgotten_ones(done: Done) -> None:
    """Of three equal images, a3 is kept. After it is forgotten, the other two stay dropped, until the dedup is run again."""
    entries = done.root.parent / "entries.txt"
    entries.write_text(f"id:{done.ids['a3']}")
    dry = done("forget", entries)
    said = done.forget(done.ids["a3"])
    for lines in (dry, said):
        (line,) = [line for line in lines if "stay dropped" in line]
        assert line.startswith(
            f"2 row(s) stay dropped in {done.step('unique').name} as duplicates of these rows"
        )
    assert set(done.rows("unique")) == {done.ids["b"], done.ids["c"]}
    assert "a forgotten row" in " ".join(done("why", done.ids["a2"]))
    assert not [line for line in done.forget(done.ids["b"]) if "stay dropped" in line]
    (line,) = [line for line in said if "to keep one row of such a group again" in line]
    folders = [done.step(name) for name in ("unique", "decided", "bytes")]
    assert f"remove {', '.join(f.name for f in folders)}, which" in line
    for folder in folders:
        shutil.rmtree(folder)
    done("run", "--local")
    assert len({done.ids["a"], done.ids["a2"]} & set(done.rows("unique"))) == 1
    assert set(done.rows("texts")) == set(done.rows("unique"))
