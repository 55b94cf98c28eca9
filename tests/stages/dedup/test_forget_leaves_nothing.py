"""Over all stages that name other rows (dedup, its decisions and pairs, texts, decontamination, merged texts): after a
forget no file of the root holds the id of a forgotten row, and nothing but what is due runs again."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from vlpipe.pipeline.cli import commands

WORKFLOW = """
name: everything
steps:
  eval: {{use: "lists.captions:CaptionsJsonl", captions: {folder}/eval.jsonl, images: {folder}, shard_rows: 4}}
  images: {{use: "lists.captions:CaptionsJsonl", captions: {folder}/list.jsonl, images: {folder}, shard_rows: 4}}
  bytes: {{use: "dedup.exact:ExactDuplicates", from: images}}
  decided: {{use: "dedup.redecide:Decide", from: images, edges: {{from: bytes}}, merge_texts: true}}
  unique:
    use: "dedup.apply:DropDuplicates"
    from: images
    decisions: {{from: decided, path: decisions.parquet}}
    merge_texts: true
  same: {{use: "text_dedup.texts:TextDuplicates", from: unique, sources: [human], threshold: null}}
  texts: {{use: "text_dedup.decisions:DropTexts", from: unique, decisions: {{from: same, path: texts.parquet}}}}
  seen: {{use: "decontamination.decontaminate:Decontaminate", from: [texts, eval], min_words: 2, ngram_words: 3}}
  clean: {{use: "dedup.apply:DropDuplicates", from: texts, decisions: {{from: seen, path: decisions.parquet}}}}
  marked: {{use: "text_dedup.decisions:DropTexts", from: clean, decisions: {{from: seen, path: texts.parquet}}}}
"""
LISTED = {
    "a1": ["a brown dog", "seen by the first"],
    "a2": ["a brown dog", "seen by the second"],
    "b1": ["two red cars", "seen by the third"],
    "c1": ["two red cars", "an eval caption of a boat"],
    "d1": ["the picture is in the eval set"],
}
EVAL = {"d2": ["a picture of the eval set"], "e1": ["an eval caption of a boat"]}


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


class Done:
    def __init__(self, folder: Path) -> None:
        images = folder / "images"
        images.mkdir(parents=True)
        for name, listed in (("list", LISTED), ("eval", EVAL)):
            lines = [json.dumps({"file": f"{n}.png", "captions": texts}) for n, texts in listed.items()]
            (images / f"{name}.jsonl").write_text("\n".join(lines))
            for n in listed:
                (images / f"{n}.png").write_bytes(picture(ord(n[0])))
        self.root, self.file = folder / "root", folder / "w.yaml"
        self.file.write_text(WORKFLOW.format(folder=images))
        self("run", "--local")
        rows = [*self.rows("images"), *self.rows("eval")]
        named = LISTED | EVAL
        self.ids = {
            n: next(r["id"] for r in rows if [t["text"] for t in r["texts"]] == texts)
            for n, texts in named.items()
        }

    def __call__(self, verb: str, *args: str | Path, code: int = 0) -> list[str]:
        given = [str(part) for part in (verb, self.file, *args, "--root", self.root)]
        done = CliRunner().invoke(commands.app, given)
        assert done.exit_code == code, (done.output, done.exception)
        return done.output.splitlines()

    def rows(self, name: str) -> list[dict[str, Any]]:
        (step,) = self.root.glob(f"{name}-*")
        return [row for path in sorted(step.glob("0*.parquet")) for row in pq.read_table(path).to_pylist()]

    def traces(self, needle: str) -> list[str]:
        """Files that hold it, in any cell or byte."""
        found = []
        for path in (p for p in self.root.rglob("*") if p.is_file()):
            parquet = path.suffix == ".parquet"
            said = str(pq.read_table(path).to_pylist()).encode() if parquet else path.read_bytes()
            found += [str(path.relative_to(self.root))] if needle.encode() in said else []
        return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(tmp_path_factory.mktemp("everything"))


# Which files name a row before it is forgotten: steps that only keep what others say of it, too.
NAMED_BY = {
    "a1": {"images", "bytes", "decided", "unique"},  # a twin: dropped, or kept with what it took
    "b1": {"images", "bytes", "decided", "unique", "same", "texts", "seen", "clean"},
    "e1": {"eval", "seen"},
    "d2": {"eval", "seen", "clean"},
}


@pytest.mark.parametrize("name", ["d2", "e1", "a1", "a2", "b1", "c1", "d1"])
def test_no_file_of_the_root_names_a_forgotten_row(done: Done, name: str) -> None:
    """One after the other in one root; each was named in all the ways that its steps have."""
    steps = {
        path.rpartition("/")[0].partition("-")[0].partition(".")[0] for path in done.traces(done.ids[name])
    }
    assert steps >= NAMED_BY.get(name, set()), steps
    entries = done.root.parent / "entries.txt"
    entries.write_text(f"id:{done.ids[name]}")
    done("forget", entries, "--yes")
    assert done.traces(done.ids[name]) == []
    assert done("run", "--local")[0].startswith("everything: all 12 steps are done, nothing to do")
    checked = CliRunner().invoke(commands.app, ["verify", str(done.root)])
    assert checked.output.splitlines()[-1].endswith("all match their records")


def test_every_stage_that_writes_ids_of_other_rows_declares_them() -> None:
    """By the columns that hold them today; a new one comes here when it is named like them."""
    from vlpipe.stages.decontamination import compare
    from vlpipe.stages.dedup import decisions, edges
    from vlpipe.stages.text_dedup import decisions as text_decisions

    schemas = [decisions.DECISIONS, compare.MATCHES, edges.EDGES, text_decisions.TEXT_DECISIONS]
    names = {f.name for schema in schemas for f in schema if f.metadata}
    assert names == {"witness", "group", "donors", "a", "b"}
