"""Writes a step's rows as webdataset tars, one per shard: shard 42 becomes `000042.tar`.

A sample is KEY.jpg (the encoded image, unchanged), KEY.json and KEY.txt; KEY is the row's id. Equal rows give equal bytes.
https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet.row_digest import checked
from vlpipe.pipeline.shard import Reject, Shard, need, read_batches
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.pipeline.storage.store import Store, canonical_json, sha256_file
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.export.chosen import Source, Which, chosen_texts, is_plain
from vlpipe.stages.filter.keep_matched import NO_TEXT_KEPT
from vlpipe.stages.formats.signatures import ENDINGS

WRITTEN = pa.schema(
    [("file", pa.string()), ("num_samples", pa.int64()), ("num_bytes", pa.int64()), ("sha256", pa.string())]
)
# open_clip's name for the file with the number of samples of each tar,
# https://github.com/mlfoundations/open_clip/blob/main/src/open_clip_train/data.py
SIZES = "sizes.json"


@dataclass(frozen=True, kw_only=True)
class WriteWebdataset(GatherStage):
    """Writes one tar per shard. Artifacts: the tars and sizes.json. Output rows (columns: WRITTEN): one per tar.

    texts: which of the kept texts go into KEY.txt: `first`; `best` (highest score; ties: the first; texts without a score
    come last); or `all`, one per line. KEY.json has the full entries of these under `texts`, and the row's columns
    of numbers, booleans and strings. sources: use only texts of these sources (web, synth, human); None: all.
    source_keys: KEY.json also has the best of these texts of each source as `caption_web`, `caption_synth`, `caption_human`,
    from which open_clip draws with `--json-text-key` and `--json-text-key-probs`.
    Rows without such a text are rejected (filtered, no_text_kept). A killed run keeps its finished tars.
    `vlpipe forget` of a row removes all tars; the next run writes them without it.
    """

    ROWS_ARE: ClassVar[str] = "the tars; that each row is in one or rejected is checked for each of them"

    texts: Which = "best"
    sources: tuple[Source, ...] | None = None
    source_keys: bool = False

    NAME: ClassVar[str] = "export.webdataset:WriteWebdataset"
    COPIES: ClassVar[bool] = True
    ADDED: ClassVar[frozenset[str]] = frozenset({"source_keys"})

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "export.webdataset", id=pa.string(), texts=TEXTS, format=pa.string(), image=pa.binary())
        return WRITTEN

    def run(self, job: Job) -> None:
        work = Store(job.work)
        shards = [(data, shard) for data in job.inputs for shard in data.shards]
        parts = []
        for number, (data, shard) in enumerate(shards):
            parts.append(self._part(work, number, data, shard))
            job.say(f"{number + 1} of {len(shards)} tars")
        for part in parts:
            job.reject([Reject(**one) for one in part["rejects"]])
            link(Path(work.path(part["file"])), Path(job.artifacts, part["file"]))
        sizes = {part["file"]: part["num_samples"] for part in parts}
        Path(job.artifacts, SIZES).write_bytes(canonical_json(sizes))
        job.emit(pa.Table.from_pylist([{n: p[n] for n in WRITTEN.names} for p in parts], WRITTEN))

    def _part(self, work: Store, number: int, data: Dataset, shard: Shard) -> dict[str, Any]:
        """Writes the tar of one shard, unless an earlier attempt finished it. Returns its row of WRITTEN, and `rejects`."""
        name, about = f"{number:06d}.tar", f"{number:06d}.json"
        if work.exists(about):  # written after the tar
            found: dict[str, Any] = work.read_json(about)
            return found
        rejects: list[Reject] = []
        with work.writing(name) as part:
            num_samples = write_tar(part, self._samples(data, shard, rejects))
        if num_samples + len(rejects) != shard.num_rows:
            raise VlpipeError(
                f"{shard.path} has {shard.num_rows} rows; {num_samples} were written, {len(rejects)} rejected"
            )
        made = {
            "file": name,
            "num_samples": num_samples,
            "num_bytes": work.size(name),
            "sha256": sha256_file(work.path(name)),
            "rejects": [asdict(one) for one in rejects],
        }
        work.write_json(about, made)
        return made

    def _samples(self, data: Dataset, shard: Shard, rejects: list[Reject]) -> Iterator[dict[str, bytes]]:
        light = [f.name for f in data.schema if f.name == "texts" or is_plain(f)]
        for batch in read_batches(data.store, shard, light, ["image"]):
            for row in checked(batch, shard.path).to_pylist():
                chosen = chosen_texts(row["texts"] or [], self.texts, self.sources)
                if chosen:
                    yield sample(row, chosen, self.source_keys)
                else:
                    detail = "no text" if self.sources is None else f"no text of {', '.join(self.sources)}"
                    rejects.append(Reject(row["id"], "filtered", NO_TEXT_KEPT, detail))


def sample(
    row: Mapping[str, Any], chosen: Sequence[Mapping[str, Any]], source_keys: bool = False
) -> dict[str, bytes]:
    """Returns a row's tar members: name -> bytes.

    Raises VlpipeError for an unknown format, a missing image, or an id with a dot.
    """
    id_, ending = row["id"], ENDINGS.get(row["format"])
    if "." in id_:  # rows cat.1 and cat.2 would be read as one sample, cat
        raise VlpipeError(f"row {id_}: its id has a dot, at which webdataset ends the key of a sample")
    if ending is None:
        raise VlpipeError(f"row {id_}: unknown format {row['format']!r}; known: {', '.join(ENDINGS)}")
    if row["image"] is None:
        raise VlpipeError(f"row {id_} has no image; an earlier step must reject such rows")
    about = {name: value for name, value in row.items() if name not in ("texts", "image")}
    if source_keys:
        for source in dict.fromkeys(one["source"] for one in chosen):
            about[f"caption_{source}"] = chosen_texts(chosen, "best", {source})[0]["text"]
    lines = "\n".join(" ".join(one["text"].split()) if len(chosen) > 1 else one["text"] for one in chosen)
    return {
        f"{id_}.{ending}": row["image"],
        f"{id_}.json": _json({**about, "texts": chosen}),
        f"{id_}.txt": lines.encode(),
    }


def _json(value: Any) -> bytes:
    return json.dumps(_finite(value), sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _finite(value: Any) -> Any:
    """Returns the value with NaN and infinity, which JSON cannot represent, replaced by None."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tar(path: str, samples: Iterator[Mapping[str, bytes]]) -> int:
    """Writes a tar of the samples in order, without times, owners or host names. Returns the number of samples."""
    num_samples = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for members in samples:
            num_samples += 1
            for name, body in members.items():
                info = tarfile.TarInfo(name)  # mtime 0, uid 0, mode 0644
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return num_samples


def link(src: Path, dst: Path) -> None:
    """Hard-links `src` to `dst`, or copies it where that fails. Not moved: `work/` needs the file until the step is done."""
    try:
        os.link(src, dst)
    except OSError:  # no hard links on this file system
        shutil.copyfile(src, dst)
