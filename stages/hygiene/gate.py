"""A gate before a captioner runs over all images: its captions of a fixed sample must be about as good as in the last run.

Three steps come before: the sample, captions of it (with the parameters of the full step: `same_as`), and a judge of these
captions. The full step names the gate as `gate: {from: GATE, path: passed.json}`, and so does not start before it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Work
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.common.batches import draws
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.common.rule import Rule, check_encoder, place
from vlpipe.stages.common.texts import FlatTexts, to_mask

FIGURES, PASSED = "gate.json", "passed.json"
NOT_IN_SAMPLE, IN_SAMPLE = "not_in_sample", "in_sample"


@dataclass(frozen=True, kw_only=True)
class FixedSample(MapStage):
    """Keeps a `fraction` of the rows, chosen by a hash of seed and id; others are rejected (filtered, `not_in_sample`).

    rest: keeps the others instead, and rejects those of the sample (`in_sample`). The rows that are kept stay the same while
    a list grows. A gate compares only equal samples: take one from a list that does not change.
    """

    NAME: ClassVar[str] = "hygiene.gate:FixedSample"
    FILTERS: ClassVar[bool] = True
    ADDED: ClassVar[frozenset[str]] = frozenset({"rest"})

    fraction: Annotated[float, Field(gt=0, le=1)]
    seed: int = 0
    rest: bool = False

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "hygiene.gate", id=pa.string())
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> Out:
            ids = rows["id"].to_pylist()
            is_in = ((draws(self.seed, ids) >> np.uint64(11)) / 2**53 < self.fraction) != self.rest
            why = IN_SAMPLE if self.rest else NOT_IN_SAMPLE
            rejects = [
                Reject(id_, "filtered", why) for id_, one in zip(ids, is_in.tolist(), strict=True) if not one
            ]
            return Out(rows.filter(pa.array(is_in)), rejects)

        yield work


@dataclass(frozen=True, kw_only=True)
class CaptionGate(GatherStage):
    """Emits RESULTS `gate_score/COLUMN`, the mean score of the captions of `sources` that are kept, and `gate_usable`, the
    fraction of all that are kept and scored. Stops the run if one of them fell by more than `max_drop`.

    column, encoder: the judge's scores of the captions, and its name, as in rules. max_drop: relative to the last run.
    min_score, min_usable: limits that hold without an earlier run, too. The last run is the gate that finished last in this
    root with the same rows and judge, or `baseline`, the `gate.json` of another root; without one, only the limits count.
    Artifacts: `gate.json`, and `passed.json`, which is always the same: the step that waits for it is not made anew when
    the gate is. Raises VlpipeError if the captions are worse, or none is scored.
    """

    NAME: ClassVar[str] = "hygiene.gate:CaptionGate"
    ROWS_ARE: ClassVar[str] = "figures"

    column: str
    encoder: str = ""
    sources: tuple[str, ...] = ("synth",)
    max_drop: Annotated[float, Field(ge=0, le=1)] = 0.05
    min_score: float | None = None
    min_usable: Annotated[float, Field(ge=0, le=1)] = 0.0
    baseline: File | None = None

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "hygiene.gate", id=pa.string(), texts=TEXTS)
        rule = Rule(column=self.column, op=">=", value=0.0, encoder=self.encoder)
        place(rule, inp)
        check_encoder(rule, inp)
        return RESULTS

    def run(self, job: Job) -> None:
        figures = self._measure(job)
        before = self._before(job, figures)
        job.say(_said(figures, before))
        if problems := self._problems(figures, before):
            raise VlpipeError(f"hygiene.gate: the captions got worse: {'; '.join(problems)}")
        Path(job.artifacts, FIGURES).write_text(json.dumps(figures, sort_keys=True) + "\n")
        Path(job.artifacts, PASSED).write_text(json.dumps({"passed": True}) + "\n")
        names = {f"gate_score/{self.column}": "score", "gate_usable": "usable"}
        rows = [
            {"name": name, "value": figures[key], "num_rows": figures["num_texts"]}
            for name, key in names.items()
        ]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _measure(self, job: Job) -> dict[str, Any]:
        num_scored = num_texts = 0
        total = 0.0
        sample = hashlib.sha256()
        ids: list[bytes] = []
        for data in job.inputs:
            for rows in data.batches(["id", "texts", self.column]):
                texts = FlatTexts(rows["texts"])
                scores = np.asarray(
                    texts.aligned(self.column, rows[self.column]).to_numpy(zero_copy_only=False), np.float64
                )
                ours = np.isin(np.asarray(texts.field("source").to_pylist(), object), self.sources)
                usable = ours & texts.kept() & to_mask(pa.array(~np.isnan(scores)))
                num_texts += int(ours.sum())
                num_scored += int(usable.sum())
                total += math.fsum(scores[usable].tolist())
                ids += [hashlib.sha256(one.encode()).digest() for one in rows["id"].to_pylist()]
        if not num_scored:
            raise VlpipeError(
                f"hygiene.gate: none of {num_texts} captions of {', '.join(self.sources)} is kept and has a score in "
                f"{self.column!r}"
            )
        for one in sorted(ids):
            sample.update(one)
        return {
            "sample": sample.hexdigest(),
            "judge": self.encoder,
            "score": total / num_scored,
            "usable": num_scored / num_texts,
            "num_texts": num_texts,
        }

    def _before(self, job: Job, figures: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if self.baseline is not None:
            found = _read(Path(self.baseline.path).read_bytes())
            if found is None:
                raise VlpipeError(
                    f"baseline: {self.baseline.path} is not a gate.json of hygiene.gate:CaptionGate"
                )
            return found if _same(found, figures) else None
        stores = {data.store.path(""): data.store for data in job.inputs}
        earlier = [one for store in stores.values() for one in _finished(store) if _same(one[1], figures)]
        return max(earlier, key=lambda one: one[0])[1] if earlier else None

    def _problems(self, figures: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
        found = []
        for key in ("score", "usable"):
            was = None if before is None else float(before[key])
            if was is not None and figures[key] < was - self.max_drop * abs(was):
                drop = f"{(was - figures[key]) / abs(was):.1%}" if was else "from 0"
                found.append(f"{key} {was:.4g} -> {figures[key]:.4g} ({drop}, max_drop {self.max_drop:.1%})")
        if self.min_score is not None and figures["score"] < self.min_score:
            found.append(f"score {figures['score']:.4g} is below min_score {self.min_score:g}")
        if figures["usable"] < self.min_usable:
            found.append(f"usable {figures['usable']:.4g} is below min_usable {self.min_usable:g}")
        return found


def _finished(store: Store) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """Yields (time at which it finished, its figures) of each finished gate in a root."""
    for folder in store.list():
        rel = f"{folder.rstrip('/')}/artifacts/{FIGURES}"
        if store.exists(f"{folder.rstrip('/')}/manifest.json") and store.exists(rel):
            figures = _read(store.read_bytes(rel))
            if figures is not None:
                yield store.fs.modified(store.path(rel)).timestamp(), figures


def _read(data: bytes) -> Mapping[str, Any] | None:
    try:
        found = json.loads(data)
        numbers = [float(found[key]) for key in ("score", "usable")]
        is_one = all(map(math.isfinite, numbers)) and {"sample", "judge"} <= set(found)
    except (ValueError, KeyError, TypeError):
        return None
    return found if is_one else None


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether two gates judged the same rows by the same judge."""
    return all(one[key] == other[key] for key in ("sample", "judge"))


def _said(figures: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    text = (
        f"score {figures['score']:.4g}, usable {figures['usable']:.1%} of {figures['num_texts']:,} captions"
    )
    if before is None:
        return f"{text}; no earlier run judged these rows by {figures['judge'] or 'this column'}"
    return f"{text}; last run: {before['score']:.4g}, {before['usable']:.1%}"
