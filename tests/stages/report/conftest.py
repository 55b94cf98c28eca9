"""A small run as it would lie on disk: a funnel, judged texts, losses and results, some of it hostile."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from vlpipe.pipeline.shard import Heavy, Reject, Shard, heavy, write_shard
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.common.row import LOSSES, RESULTS, TEXTS, text
from vlpipe.stages.report.view import RunView, StepView

HOSTILE = "<script>alert('caption')</script><img src=x onerror=alert(1)>\"'</s>\u202egnp.exe"
LIGHT = [("id", pa.string()), ("url", pa.string()), ("texts", TEXTS)]
ROWS = pa.schema([*LIGHT, heavy("image", pa.binary())])
COLOURS = ("red", "blue", "green", "orange", "purple")


def picture(seed: int, size: int = 160) -> bytes:
    rng = np.random.default_rng(seed)
    ground = rng.integers(120, 245, (6, 8, 3)).astype(np.uint8)
    image = Image.fromarray(ground).resize((size * 4 // 3, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    x, y, r = *rng.integers(size // 4, size, 2), size // 5
    draw.ellipse((x - r, y - r, x + r, y + r), fill=COLOURS[seed % len(COLOURS)])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def write(
    store: Store, name: str, rows: pa.Table, shard_rows: int, image_of: Dataset | None = None
) -> Dataset:
    """`rows` as a step's shards; the image is in this step's files, or joined from those of `image_of`."""
    light = rows if image_of is None else rows.drop_columns(["image"])
    shards: list[Shard] = []
    for k in range(-(-rows.num_rows // shard_rows)):
        part = light.slice(k * shard_rows, shard_rows)
        shard = write_shard(store, f"{name}/{k:06d}.parquet", [part], part.schema)
        pointer = (
            () if image_of is None else (Heavy("image", image_of.shards[k].path, image_of.shards[k].digest),)
        )
        shards.append(replace(shard, heavy=pointer))
    return Dataset(store, name, rows.schema, tuple(shards))


def drop(data: Dataset, name: str, gone: Sequence[str], image_of: Dataset) -> Dataset:
    """`data` without some rows, shard by shard."""
    shards = []
    for k, shard in enumerate(data.shards):
        one = replace(data, shards=(shard,)).table()
        part = one.filter(pa.array([i not in gone for i in one["id"].to_pylist()]))
        done = write_shard(data.store, f"{name}/{k:06d}.parquet", [part], part.schema)
        shards.append(replace(done, heavy=(Heavy("image", image_of.shards[k].path, ""),)))
    return Dataset(data.store, name, data.schema, tuple(shards))


def judged(data: Dataset, rng: np.random.Generator) -> pa.Table:
    """Each row's texts with a synthetic one added, all scored."""
    rows = data.table(["id", "url", "texts"]).to_pylist()
    for row in rows:
        row["texts"].append(text(f"a picture of a thing, number {row['id'][:4]}", "synth", model="0" * 64))
        for one in row["texts"]:
            good = rng.random() < (0.5 if one["source"] == "web" else 0.75)
            score = float(np.clip(rng.beta(8, 1.5) if good else rng.beta(1.2, 6), 0, 1))
            one.update(score=score, kept=score >= 0.5, why=None if score >= 0.5 else "not_matched")
    return pa.Table.from_pylist([{**row, "image": None} for row in rows], schema=data.schema)


def curves(steps: int, names: Sequence[str], seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    rows = []
    for k, name in enumerate(names):
        for step in range(steps):
            value = (3 - k) * np.exp(-step / (steps / 4)) + 0.4 + 0.15 * rng.normal()
            rows.append({"step": step, "name": name, "value": float("nan") if step == 7 else float(value)})
    return pa.Table.from_pylist(rows, LOSSES)


def metrics(shift: float) -> pa.Table:
    names = ["tr@1", "tr@5", "ir@1", "cider", "filter_precision", "filter_precision/wrong_attribute"]
    rows = [{"name": n, "value": 0.1 + 0.1 * k + shift, "num_rows": 500} for k, n in enumerate(names)]
    return pa.Table.from_pylist([*rows, {"name": "dedup_recall", "value": None, "num_rows": 0}], RESULTS)


def counts(rejects: Sequence[Reject]) -> dict[str, int]:
    return dict(Counter(f"{r.kind}:{r.why}" for r in rejects))


def listed_rows(images: Sequence[bytes], captions: Sequence[str]) -> pa.Table:
    rows = [
        {
            "id": f"{k * 2654435761 % 2**32:08x}" * 8,
            "url": f"http://user:secret@photos.test/{k:06d}.jpg?signature=hidden",
            "texts": [text(captions[k % len(captions)], "web")],
            "image": image,
        }
        for k, image in enumerate(images)
    ]
    return pa.Table.from_pylist(rows, schema=ROWS)


def make_run(folder: Path, images: Sequence[bytes], captions: Sequence[str]) -> RunView:
    """Pictures through fetch, dedup, training, filter and training again; one step failed."""
    store = Store(str(folder))
    rows = listed_rows(images, captions)
    fetched = write(store, "fetch", rows, -(-len(images) // 3))
    ids = rows["id"].to_pylist()
    twins = [
        Reject(i, "filtered", "near_duplicate", f"duplicate of {ids[0]}, similarity 0.970") for i in ids[4::9]
    ]
    unique = drop(fetched, "unique", [r.id for r in twins], fetched)
    filtered, bad = judged_step(store, unique, fetched)
    matched = drop(filtered, "matched", [r.id for r in bad], fetched)
    about = "Noisy web pairs in, a better model out: CapFilt on the demo world.\nLi et al. 2022."
    data = {"fetch": fetched, "unique": unique, "filter": filtered, "matched": matched}
    steps = steps_of(store, len(images), data, {"fetch": lost_rows(), "unique": twins, "matched": bad})
    return RunView(title="blip_capfilt", description=about, steps=steps)


def lost_rows() -> list[Reject]:
    found = [
        Reject(f"{k:064x}", "fault", "http_404", "GET http://u:p@h.test/x?token=hidden") for k in range(5)
    ]
    return [*found, *(Reject(f"{k:064x}", "fault", "truncated", "stopped at byte 812") for k in range(5, 7))]


def judged_step(store: Store, unique: Dataset, fetched: Dataset) -> tuple[Dataset, list[Reject]]:
    """The filter's shards, and the rows it left no text."""
    scored = judged(unique, np.random.default_rng(0))
    kept = [any(t["kept"] for t in ts) for ts in scored["texts"].to_pylist()]
    bad = [
        Reject(i, "filtered", "no_text_kept", "web: not_matched; synth: not_matched")
        for i, k in zip(scored["id"].to_pylist(), kept, strict=True)
        if not k
    ]
    sizes = [s.num_rows for s in unique.shards]
    parts = [scored.slice(sum(sizes[:k]), n).drop_columns(["image"]) for k, n in enumerate(sizes)]
    shards = [
        replace(
            write_shard(store, f"filter/{k:06d}.parquet", [p], p.schema),
            heavy=(Heavy("image", fetched.shards[k].path, ""),),
        )
        for k, p in enumerate(parts)
    ]
    return Dataset(store, "filter", ROWS, tuple(shards)), bad


def steps_of(
    store: Store, num_images: int, data: dict[str, Dataset], gone: dict[str, list[Reject]]
) -> list[StepView]:
    def dropped(name: str) -> dict[str, Any]:
        return {"rejects": counts(gone[name]), "rejects_sample": gone[name]}

    def trained(name: str, seed: int) -> Dataset:
        return write(store, name, curves(400, ("itc", "itm", "lm"), seed), 10_000)

    listing = "http://user:secret@lists.test/web.parquet?sig=hidden"
    fetched, unique, matched = data["fetch"], data["unique"], data["matched"]
    return [
        step("fetch", "fetching.images:FetchImages", (), num_images + 7, fetched, 12.4, **dropped("fetch"),
             params={"list": listing, "timeout_s": 10}),
        step("twins", "dedup.exact:ExactDuplicates", ("fetch",), num_images, fetched, 3.1,
             params={"phash": True, "max_distance": 4}),
        step("unique", "dedup.apply:DropDuplicates", ("fetch",), num_images, unique, 0.8,
             **dropped("unique"), params={"decisions": {"from": "twins", "path": "decisions.parquet"}}),
        step("pretrain", "train.train:Train", ("unique",), unique.num_rows, trained("pretrain", 1), 312.0),
        step("filter", "filter.itm:ItmFilter", ("unique",), unique.num_rows, data["filter"], 41.7,
             params={"threshold": 0.5}),
        step("matched", "filter.keep_matched:KeepMatched", ("filter",), unique.num_rows, matched, 0.4,
             **dropped("matched")),
        step("retrain", "train.train:Train", ("matched",), matched.num_rows, trained("retrain", 2), 4312.0),
        step("before", "evaluate.retrieval:Retrieval", ("pretrain",), 500,
             write(store, "before", metrics(0.0), 100), 5.0),
        step("after", "evaluate.retrieval:Retrieval", ("retrain",), 500,
             write(store, "after", metrics(0.2), 100), 5.0),
        StepView(name="<script>alert('step')</script>", use="my_pkg.stages:Mine", status="failed",
                 inputs=("matched",)),
    ]  # fmt: skip


def step(
    name: str, use: str, inputs: Sequence[str], rows_in: int, data: Dataset, seconds: float, **more: Any
) -> StepView:
    numbers = {"rows_in": rows_in, "rows_out": data.num_rows, "seconds": seconds}
    return StepView(name=name, use=use, status="done", inputs=inputs, dataset=data, **numbers, **more)


@pytest.fixture
def run(tmp_path: Path) -> RunView:
    captions = ["a red ball on the grass", HOSTILE, "IMG_0123 best price", "two dogs run on the beach " * 30]
    return make_run(
        tmp_path, [*(picture(k) for k in range(40)), b"<html>not a picture", picture(50, 32)], captions
    )
