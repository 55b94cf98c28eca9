"""Makes the root that `benchmarks/ui.py` looks at: a step with images and one with scored texts, as the engine writes them.

Step `images` has the heavy column: JPEGs of about 20 KB, in shards of 10,000 rows. Step `filtered` has the light columns
of the rows that a filter kept, and pointers to those shards: a web text and a synthetic one per row, each with a score.
Scores are random, so no column is sorted. A twentieth of the rows is rejected, for four reasons.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
from PIL import Image

from vlpipe.pipeline.engine.records.manifest import Manifest, StepFile, schema_lines, write_manifest
from vlpipe.pipeline.engine.records.receipts import Receipt, digest_shards, shard_path, write_receipt
from vlpipe.pipeline.engine.records.rejects import write_rejects
from vlpipe.pipeline.engine.records.root_format import write_format
from vlpipe.pipeline.shard import Heavy, Reject, Shard, write_shard
from vlpipe.pipeline.storage.checksummed_json import write_sealed
from vlpipe.pipeline.storage.file_names import STEP_FILE
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, TEXT, TEXTS, hex_strings

IMAGES = pa.schema([*LISTED, *IMAGE_FIELDS])
FILTERED = pa.schema([f for f in IMAGES if f.name != "image"])
WORDS = """
a red small blue large green old new dog cat car tree house river on in under beside with two three white
black man woman child street table photo of the sea stock image vintage wooden sale free shipping best price
sunset mountain
""".split()  # noqa: SIM905
CODES = (("fault", "http_404"), ("fault", "timeout"), ("filtered", "too_small"), ("filtered", "no_text_kept"))
NUM_PICTURES = 211  # different JPEGs; more than fit into a window of zstd


def jpegs(kilobytes: int, rng: np.random.Generator) -> list[bytes]:
    """Returns NUM_PICTURES JPEGs of 256 x 192 pixels and about this size: colours with noise, cut to nothing if 0."""
    if not kilobytes:
        return [b""]
    made = []
    for k in range(NUM_PICTURES):
        base = np.full((192, 256, 3), rng.integers(0, 200, 3), np.int16)
        base += rng.integers(0, 55, base.shape, np.int16)
        buffer = io.BytesIO()
        Image.fromarray(base.astype(np.uint8)).save(buffer, "JPEG", quality=60 + k % 5)
        data = buffer.getvalue()
        made.append(data + rng.bytes(max(0, kilobytes * 1000 - len(data))))
    return made


def texts_of(num: int, rng: np.random.Generator, with_scores: bool) -> pa.ListArray:
    """Returns TEXTS of `num` rows with two texts each, a web one and a synthetic one."""
    words = np.array(WORDS)[rng.integers(0, len(WORDS), (2 * num, 9))]
    scores = rng.beta(2, 2, 2 * num).astype(np.float32)
    kept = scores >= 0.5
    mask = None if with_scores else np.ones(2 * num, bool)
    whys = [None if one else "low_score" for one in kept.tolist()] if with_scores else [None] * (2 * num)
    arrays = {
        "text": pa.array([" ".join(line) for line in words.tolist()]),
        "source": pa.array(["web", "synth"] * num),
        "model": pa.array([None, "5e" * 32] * num, pa.string()),
        "score": pa.array(scores, mask=mask),
        "kept": pa.array(kept, mask=mask),
        "why": pa.array(whys, pa.string()),
    }
    flat = pa.StructArray.from_arrays([arrays[f.name] for f in TEXT], fields=list(TEXT))
    return pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * num + 1, 2, dtype=np.int32)), flat).cast(TEXTS)


def rows(shard: int, num: int, pictures: list[bytes], rng: np.random.Generator) -> pa.Table:
    """Returns `num` rows with the columns of IMAGES; their scores are set."""
    at = np.arange(shard * num, (shard + 1) * num)
    columns = {
        "id": hex_strings(rng.bytes(32 * num), 32),
        "url": pa.array([f"https://host{k % 997}.example/pictures/{k:09d}.jpg" for k in at.tolist()]),
        "texts": texts_of(num, rng, with_scores=True),
        "sha256": hex_strings(rng.bytes(32 * num), 32),
        "format": pa.array(["JPEG"] * num),
        "width": pa.array(rng.integers(64, 2000, num).astype(np.int32)),
        "height": pa.array(rng.integers(64, 2000, num).astype(np.int32)),
        "image": pa.array([pictures[k % len(pictures)] for k in at.tolist()], pa.binary()),
    }
    return pa.table([columns[f.name] for f in IMAGES], schema=IMAGES)


def make_root(store: Store, num_rows: int, num_shards: int, kilobytes: int) -> None:
    """Writes the root. kilobytes: size of a JPEG."""
    write_format(store)
    per_shard, rng = num_rows // num_shards, np.random.default_rng(0)
    pictures = jpegs(kilobytes, rng)
    receipts: dict[str, list[Receipt]] = {"images-0123abcd": [], "filtered-4567cdef": []}
    images, filtered = receipts
    for k in range(num_shards):
        table = rows(k, per_shard, pictures, rng)
        made = write_shard(store, shard_path(images, k), pieces(table), IMAGES)
        made = replace(made, key=f"images {k}", heavy=(Heavy("image", made.path, made.digest, made.footer),))
        receipts[images].append(record(store, images, made, k, per_shard))
        gone = rng.random(per_shard) < 0.05
        light = table.drop_columns(["image"])
        less = write_shard(store, shard_path(filtered, k), pieces(light.filter(pa.array(~gone))), FILTERED)
        less = replace(less, key=f"filtered {k}", heavy=made.heavy)
        codes = rng.choice(len(CODES), per_shard)
        rejects = [
            Reject(id_, *CODES[code], "made up")  # type: ignore[arg-type]
            for id_, code in zip(
                light.filter(pa.array(gone))["id"].to_pylist(), codes[gone].tolist(), strict=True
            )
        ]
        receipts[filtered].append(record(store, filtered, less, k, per_shard, rejects, made.digest))
    finish(store, images, "fetching.images:FetchImages", (), receipts[images], IMAGES)
    finish(store, filtered, "filter.itm:ItmFilter", (images,), receipts[filtered], IMAGES)


def pieces(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, 512):
        yield table.slice(start, 512)


def record(
    store: Store,
    folder: str,
    shard: Shard,
    index: int,
    rows_in: int,
    rejects: list[Reject] | None = None,
    input_digest: str = "",
) -> Receipt:
    """Writes a shard's rejects and its receipt, and returns the receipt."""
    codes, digest = write_rejects(store, folder, index, folder.partition("-")[0], rejects or [])
    receipt = Receipt(
        index=index,
        shard=shard,
        bytes=store.size(shard.path),
        rows_in=rows_in,
        input_digest=input_digest,
        rejects=codes,
        rejects_digest=digest,
        run={"seconds": 10.0},
    )
    write_receipt(store, folder, receipt)
    return receipt


def finish(
    store: Store, folder: str, use: str, inputs: tuple[str, ...], receipts: list[Receipt], schema: pa.Schema
) -> None:
    """Writes the files that describe a finished step."""
    name, key = folder.partition("-")[0], folder.rpartition("-")[2] * 8
    rejects: Counter[str] = Counter()
    for receipt in receipts:
        rejects.update(receipt.rejects)
    both = {
        "step": name,
        "use": use,
        "identity": (use, 1),
        "step_key": key,
        "stage_key": key,
        "params": {"threshold": 0.5} if inputs else {},
        "files": {},
        "inputs": inputs,
        "schema": schema_lines(schema),
        "references": (),
        "artifact_references": {},
    }
    file = StepFile(torch_threads=1, shard_rows=receipts[0].rows_in, **both)  # type: ignore[arg-type]
    write_sealed(store, f"{folder}/{STEP_FILE}", {name: getattr(file, name) for name in file.__slots__})
    manifest = Manifest(
        inputs_digest="",
        shards_digest=digest_shards(r.shard for r in receipts),
        read={},
        sources=(),
        num_shards=len(receipts),
        rows_in=sum(r.rows_in for r in receipts),
        rows_out=sum(r.shard.num_rows for r in receipts),
        bytes=sum(r.bytes for r in receipts),
        rejects=dict(rejects),
        artifacts={},
        versions={},
        **both,  # type: ignore[arg-type]
    )
    write_manifest(store, folder, manifest, receipts)
