from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from vlpipe.pipeline.cli import commands
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Reject, heavy
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.decontamination.decontaminate import Decontaminate
from vlpipe.stages.decontamination.sets import EvalSet
from vlpipe.stages.dedup.apply import DropDuplicates
from vlpipe.stages.text_dedup.decisions import DropTexts

SCHEMA = pa.schema([*LISTED, *IMAGE_FIELDS, heavy("embedding", pa.list_(pa.float32(), 4))])
CAPTION = "two dogs chase a red ball over the wet grass"


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(20, 220, (10, 10, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def axis(n: int, tilt: float = 0.0) -> list[float]:
    """A unit vector along axis n of 4, turned by `tilt` radians towards the next."""
    vector = np.zeros(4)
    vector[n], vector[(n + 1) % 4] = np.cos(tilt), np.sin(tilt)
    return [float(v) for v in vector]


def table(*rows: tuple[str, bytes, list[str], list[float]]) -> pa.Table:
    """(id, image, texts, embedding) each."""
    listed = [
        {
            "id": id_,
            "url": id_,
            "texts": [text(t, "web") for t in texts],
            "sha256": hashlib.sha256(image).hexdigest(),
            "format": "PNG",
            "width": 96,
            "height": 96,
            "image": image,
            "embedding": vector,
        }
        for id_, image, texts, vector in rows
    ]
    return pa.Table.from_pylist(listed, schema=SCHEMA)


class Ran:
    def __init__(self, folder: Path, inputs: list[Dataset], **parameters: Any) -> None:
        self.said: list[str] = []
        got = run_gather(Decontaminate(**parameters), inputs, folder, say=self.said.append)
        read = {n: pq.read_table(got.artifacts / f"{n}.parquet") for n in ("decisions", "texts", "matches")}
        self.decisions = {r["id"]: r for r in read["decisions"].to_pylist()}
        self.texts = {(r["id"], r["place"]): r for r in read["texts"].to_pylist()}
        self.matches = sorted(map(tuple, (r.values() for r in read["matches"].to_pylist())), key=str)
        self.results = {r["name"]: (r["value"], r["num_rows"]) for r in got.table.to_pylist()}
        self.artifacts = got.artifacts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation set: images/a.png, images/more/b.png, notes beside them, captions.json."""
    (tmp_path / "images/more").mkdir(parents=True)
    (tmp_path / "images/a.png").write_bytes(encoded(picture(1)))
    (tmp_path / "images/more/b.png").write_bytes(encoded(picture(2)))
    (tmp_path / "images/LICENSE").write_text("no image")
    annotations = [{"image_id": 1, "caption": CAPTION}, {"image_id": 1, "caption": "a dog"}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": [], "annotations": annotations}))
    return tmp_path


def web() -> pa.Table:
    return table(
        ("same", encoded(picture(1)), ["a dog"], axis(0)),
        ("jpeg", encoded(picture(2), "JPEG", quality=60), ["fine"], axis(1)),
        ("small", encoded(picture(2).resize((48, 48)), "JPEG"), [], axis(1)),
        ("other", encoded(picture(3)), ["Buy: " + CAPTION.upper() + "!", CAPTION, "a cat"], axis(2)),
        ("cut", encoded(picture(4))[:-40], ["fine"], axis(3)),
    )


def files(folder: Path, name: str = "coco") -> EvalSet:
    return EvalSet(
        name=name, images=File(path=f"{folder}/images"), texts=File(path=f"{folder}/captions.json")
    )


def test_planted_images_and_texts_are_found_counted_and_dropped(folder: Path) -> None:
    ran = Ran(folder / "step", [dataset(folder, web())], sets=(files(folder),))
    assert {i for i, r in ran.decisions.items() if not r["keep"]} == {"same", "jpeg", "small"}
    columns = ("keep", "why", "witness", "similarity", "group")
    assert [ran.decisions["same"][c] for c in columns] == [False, "in_eval:coco", "a.png", 1.0, "a.png"]
    assert [ran.decisions["other"][c] for c in columns] == [True, None, None, None, "other"]
    assert ran.decisions["small"]["witness"] == "more/b.png"
    assert ran.decisions["small"]["similarity"] >= 1 - 10 / 64
    assert [k for k, r in ran.texts.items() if not r["keep"]] == [("other", 0), ("other", 1)]
    assert ran.texts["other", 1]["witness"] == "captions.json annotations[0]"
    assert ran.results == {
        "removed_rows": (3, 5),
        "removed_rows/coco": (3, 5),
        "removed_rows/coco/same_bytes": (1, 5),
        "removed_rows/coco/picture": (2, 5),
        "removed_texts": (2, 6),
        "removed_texts/coco": (2, 6),
        "removed_texts/coco/same_text": (1, 6),
        "removed_texts/coco/ngrams": (1, 6),
    }
    assert ran.said == [
        "coco: the bytes of 3 images, 3 pictures (1 cannot be decoded), 2 texts (1 under 5 words)",
        "1 image(s) of the rows cannot be decoded: compared by their bytes only",
    ]
    left = apply(web(), ran)
    assert left["id"].to_pylist() == ["other", "cut"]
    assert [t["why"] for t in left["texts"][0].as_py()] == ["in_eval:coco", "in_eval:coco", None]


def apply(rows: pa.Table, ran: Ran) -> pa.Table:
    paths = (str(ran.artifacts / f"{n}.parquet") for n in ("decisions", "texts"))
    decisions, texts = (File(path=p, digest=p) for p in paths)
    out = run_map(DropDuplicates(decisions=decisions), rows)
    assert Reject("same", "filtered", "in_eval:coco", "duplicate of a.png, similarity 1.000") in out.rejects
    return run_map(DropTexts(decisions=texts), out.table).table


def test_a_row_in_two_sets_counts_in_both_and_names_the_first(folder: Path) -> None:
    sets = (files(folder), files(folder, "flickr"))
    ran = Ran(folder / "step", [dataset(folder, web())], sets=sets)
    assert ran.results["removed_rows"] == ran.results["removed_rows/flickr"] == (3, 5)
    assert ran.results["removed_texts"] == ran.results["removed_texts/flickr"] == (2, 6)
    assert {r["why"] for r in ran.decisions.values()} == {None, "in_eval:coco"}


def test_the_rows_of_a_step_are_a_set(tmp_path: Path) -> None:
    held = table(
        ("e1", encoded(picture(1)), [CAPTION, "a dog"], axis(2)),
        ("e2", encoded(picture(9)), [], axis(3, 0.2)),
    )
    inputs = [dataset(tmp_path, web()), dataset(tmp_path, held, name="heldout")]
    ran = Ran(tmp_path / "1", inputs)
    assert ran.matches == [
        ("cut", None, None, "not_compared_truncated", None, None),
        ("other", 0, "heldout", "ngrams", "e1", 1.0),
        ("other", 1, "heldout", "same_text", "e1", 1.0),
        ("same", None, "heldout", "same_bytes", "e1", 1.0),
    ]
    by_vector = Ran(tmp_path / "2", inputs, threshold=0.95)
    assert {i: r["witness"] for i, r in by_vector.decisions.items() if not r["keep"]} == {
        "same": "e1",
        "other": "e1",
        "cut": "e2",
    }
    assert by_vector.results["removed_rows/heldout/embedding"] == (2, 5)
    assert by_vector.decisions["cut"]["similarity"] == pytest.approx(np.cos(0.2), abs=1e-6)


def test_an_evaluation_step_without_rows_or_with_a_text_that_is_none(tmp_path: Path) -> None:
    rows = dataset(tmp_path, web())
    held = table(("e1", encoded(picture(1)), [CAPTION], axis(2)))
    with pytest.raises(VlpipeError, match="evaluation step 'none' has no rows, so nothing can match it"):
        Ran(tmp_path / "1", [rows, dataset(tmp_path, held[:0], name="none")], threshold=0.95)
    texts = pa.array([[{**text(CAPTION, "web"), "text": None}]], SCHEMA.field("texts").type)
    held = held.set_column(2, SCHEMA.field("texts"), texts)
    ran = Ran(tmp_path / "2", [rows, dataset(tmp_path, held, name="heldout")])
    assert ran.results["removed_texts/heldout"] == (0, 6)


def test_only_what_both_have_is_compared(tmp_path: Path) -> None:
    held = table(("e1", encoded(picture(1)), [CAPTION], axis(2)))
    no_images = dataset(tmp_path, held.drop_columns(["image", "embedding"]), name="heldout")
    ran = Ran(tmp_path / "1", [dataset(tmp_path, web()), no_images])
    assert list(ran.results) == [
        *("removed_rows", "removed_rows/heldout", "removed_rows/heldout/same_bytes"),
        *(
            "removed_texts",
            "removed_texts/heldout",
            "removed_texts/heldout/same_text",
            "removed_texts/heldout/ngrams",
        ),
    ]
    assert [i for i, r in ran.decisions.items() if not r["keep"]] == ["same"]
    ids = dataset(tmp_path, held.select(["id"]), name="ids")
    with pytest.raises(
        VlpipeError, match="the rows and the evaluation step 'ids' have none of sha256, image, embedding"
    ):
        Ran(tmp_path / "2", [dataset(tmp_path, web()), ids])


def test_embeddings_in_a_file(folder: Path) -> None:
    vectors = pa.array([axis(1, 0.1), axis(3)], pa.list_(pa.float32(), 4))
    pq.write_table(pa.table({"id": ["v1", "v2"], "embedding": vectors}), folder / "v.parquet")
    spec = EvalSet(name="iss", embeddings=File(path=str(folder / "v.parquet")))
    ran = Ran(folder / "step", [dataset(folder, web())], sets=(spec,), threshold=0.99)
    assert {i: r["witness"] for i, r in ran.decisions.items() if not r["keep"]} == {
        "jpeg": "v1",
        "small": "v1",
        "cut": "v2",
    }
    wide = pa.array([[1.0, 0, 0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ["v1"], "embedding": wide}), folder / "v.parquet")
    with pytest.raises(
        VlpipeError,
        match="the embeddings of the evaluation set 'iss' have width 3, those of the rows 4; compute both",
    ):
        Ran(folder / "2", [dataset(folder, web())], sets=(spec,), threshold=0.99)


def test_texts_dropped_before_are_not_compared(folder: Path) -> None:
    rows = web().to_pylist()
    rows[3]["texts"][1] |= {"kept": False, "why": "junk"}
    ran = Ran(folder / "step", [dataset(folder, pa.Table.from_pylist(rows, SCHEMA))], sets=(files(folder),))
    assert [k for k, r in ran.texts.items() if not r["keep"]] == [("other", 0)]


def test_the_order_of_rows_and_the_size_of_shards_change_no_decision(folder: Path) -> None:
    rows = pa.concat_tables(
        web().set_column(0, "id", pa.array([f"{n}-{i}" for i in web()["id"].to_pylist()])) for n in range(5)
    )
    want = Ran(folder / "0", [dataset(folder / "0", rows)], sets=(files(folder),))
    order = list(range(rows.num_rows))
    for attempt in (1, 2):
        random.Random(attempt).shuffle(order)
        data = dataset(folder / str(attempt), rows.take(order), shard_rows=7 * attempt)
        ran = Ran(folder / str(attempt), [data], sets=(files(folder),))
        assert (ran.decisions, ran.texts, ran.matches) == (want.decisions, want.texts, want.matches)
        assert ran.results == want.results


def test_a_second_attempt_uses_the_finished_parts(folder: Path) -> None:
    data = dataset(folder, web(), shard_rows=2)
    first = Ran(folder / "step", [data], sets=(files(folder),))
    parts = sorted((folder / "step/work").iterdir())
    assert len(parts) == 3
    parts[1].unlink()
    stamp = parts[0].stat().st_mtime_ns
    assert Ran(folder / "step", [data], sets=(files(folder),)).matches == first.matches
    assert parts[0].stat().st_mtime_ns == stamp


def test_no_rows(folder: Path) -> None:
    ran = Ran(folder / "step", [dataset(folder, SCHEMA.empty_table())], sets=(files(folder),))
    assert (ran.decisions, ran.texts, ran.results["removed_rows"]) == ({}, {}, (0, 0))


def test_what_cannot_work_is_said_before(folder: Path) -> None:
    vectors = EvalSet(name="v", embeddings=File(path="v.parquet"))
    assert Decontaminate(sets=(vectors, EvalSet(name="a b"), EvalSet(name="c")), min_words=9).preflight() == [
        "sets: 'v' has embeddings: set the `threshold` for their encoder",
        "sets: the name 'a b' becomes part of a reject code: use letters, digits and . _ - only",
        "sets: 'a b' has neither images, embeddings nor texts",
        "sets: 'c' has neither images, embeddings nor texts",
        "min_words must be at most ngram_words, got min_words: 9, ngram_words: 8; else evaluation texts "
        "of a length in between would not be compared",
    ]
    for name, sets in {"sha256": (files(folder),), "embedding": (vectors,)}.items():
        with pytest.raises(
            SchemaError,
            match=rf"decontamination\.decontaminate reads column '{name}', which its input does not have",
        ):
            Decontaminate(sets=sets, threshold=0.9).schema(LISTED)
    with pytest.raises(
        VlpipeError, match=r"there is no evaluation set: list files in `sets`, or evaluation steps"
    ):
        Ran(folder / "1", [dataset(folder, web())])
    with pytest.raises(VlpipeError, match="evaluation sets must have different names; twice: coco"):
        Ran(folder / "2", [dataset(folder, web())], sets=(files(folder), files(folder)))


WORKFLOW = """\
# Web rows without what the held-out rows and the files of a benchmark hold.
name: clean
root: runs/clean
steps:
  web: {{use: "lists.captions:CaptionsJsonl", captions: {0}/web.jsonl, images: {0}/web}}
  heldout: {{use: "lists.captions:CaptionsJsonl", captions: {0}/heldout.jsonl, images: {0}/images, source: heldout}}
  leaks:
    use: "decontamination.decontaminate:Decontaminate"
    from: [web, heldout]
    sets: [{{name: coco, texts: {0}/captions.json}}]
  no_images: {{use: "dedup.apply:DropDuplicates", from: web, decisions: {{from: leaks, path: decisions.parquet}}}}
  clean: {{use: "text_dedup.decisions:DropTexts", from: no_images, decisions: {{from: leaks, path: texts.parquet}}}}
"""


def test_in_a_workflow(folder: Path) -> None:
    (folder / "web").mkdir()
    lines = []
    for row in web().to_pylist()[:4]:
        (folder / "web" / row["id"]).write_bytes(row["image"])
        lines.append({"file": row["id"], "captions": [t["text"] for t in row["texts"]]})
    (folder / "web.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "heldout.jsonl").write_text(json.dumps({"file": "a.png", "captions": ["a red kite"]}) + "\n")
    (folder / "w.yaml").write_text(WORKFLOW.format(folder))
    args = ["run", str(folder / "w.yaml"), "--root", str(folder / "root"), "--local"]
    done = CliRunner().invoke(commands.app, args, env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    (shard,) = folder.glob("root/clean-*/000000.parquet")
    kept = pq.read_table(shard).to_pylist()
    assert [r["url"] for r in kept] == ["jpeg", "small", "other"], "only a.png is held out"
    assert [t["why"] for t in kept[2]["texts"]] == ["in_eval:coco", "in_eval:coco", None]
    why = CliRunner().invoke(commands.app, ["why", *args[1:-1], "other"], env={"COLUMNS": "400"})
    said = (
        "log: dropped: Buy: TWO DOGS CHASE A RED BALL OVER THE WET GRASS!, similarity: 1, "
        "witness: captions.json annotations[0]"
    )
    assert said in why.output, why.output
    for name in (
        "removed_rows/heldout/same_bytes",
        "removed_texts/coco/same_text",
        "removed_texts/heldout/ngrams",
    ):
        assert name in done.output, done.output


def damaged() -> dict[str, Callable[[bytes], bytes]]:
    def jpeg(data: bytes, quality: int, side: int = 160) -> bytes:
        image = Image.open(io.BytesIO(data)).resize((side, side), Image.Resampling.LANCZOS)
        return encoded(image, "JPEG", quality=quality)

    return {
        "same": lambda data: data,
        "quality 50": lambda data: jpeg(data, 50),
        "quality 20": lambda data: jpeg(data, 20),
        "png": lambda data: encoded(Image.open(io.BytesIO(data))),
        "half": lambda data: jpeg(data, 90, 80),
        "double": lambda data: jpeg(data, 90, 320),
    }


@pytest.mark.slow
def test_photos_planted_copies_are_found_and_nothing_else(tmp_path: Path, photos: list[Path]) -> None:
    """20 copies of each kind among 400 other photos, against 300 photos of the evaluation set."""
    (tmp_path / "eval").mkdir()
    for photo in photos[:300]:
        (tmp_path / "eval" / photo.name).write_bytes(photo.read_bytes())
    rows = [(p.name, p.read_bytes(), [], axis(0)) for p in photos[300:700]]
    copies = {}
    for n, (kind, change) in enumerate(damaged().items()):
        for photo in photos[20 * n : 20 * n + 20]:
            copies[f"{kind} {photo.name}"] = photo.name
            rows.append((f"{kind} {photo.name}", change(photo.read_bytes()), [], axis(0)))
    spec = EvalSet(name="photos", images=File(path=str(tmp_path / "eval")))
    ran = Ran(tmp_path / "step", [dataset(tmp_path, table(*rows))], sets=(spec,))
    assert {i: r["witness"] for i, r in ran.decisions.items() if not r["keep"]} == copies
    assert ran.results["removed_rows/photos/same_bytes"] == (20, 520)
    assert ran.results["removed_rows/photos/picture"] == (100, 520)
