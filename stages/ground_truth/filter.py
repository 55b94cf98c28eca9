"""Evaluates the filter: compares the decision on each text with the demo world's ground truth.

The ground truth has a label for each web text; `demo.check_text` decides if a synthetic text is correct.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.demo.check_text import right
from vlpipe.stages.demo.scenes import Scene, Thing

WANTED = "set `truth` to truth.parquet of the world that made the row"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One web or synthetic text: its ground truth and the filter's decision."""

    source: str
    right: bool
    noise: str | None  # kind of noise, for wrong web texts
    kept: bool


@dataclass(frozen=True, kw_only=True)
class FilterTruth(GatherStage):
    """Emits RESULTS of a filtered dataset; `truth` is the world's truth.parquet. Human texts are ignored.

    web_right, synth_right, synth_right/kept: fraction of correct texts among web, synthetic, kept synthetic texts.
    synth_kept: fraction of synthetic texts that were kept. filter_precision, filter_recall: of keeping web texts; positives
    are the correct ones. filter_precision/KIND ignores noise of other kinds; filter_rejected/KIND: fraction of this kind
    that was dropped. noise_ratio/before, noise_ratio/after: fraction of wrong texts among all web texts, and among kept web
    and synthetic texts. A metric over no texts is null.
    """

    ROWS_ARE: ClassVar[str] = "figures"

    truth: File

    NAME: ClassVar[str] = "evaluate.truth:FilterTruth"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "ground_truth.filter", url=pa.string(), texts=TEXTS)
        return RESULTS

    def run(self, job: Job) -> None:
        known = read_truth(self.truth)
        (rows,) = job.inputs
        batches = (batch.to_pylist() for batch in rows.batches(["url", "texts"]))
        verdicts = [verdict for batch in batches for row in batch for verdict in _judge(row, known)]
        job.emit(pa.Table.from_pylist(list(_results(verdicts)), RESULTS))


def read_truth(file: File) -> dict[str, dict[str, Any]]:
    """Returns url -> row of the demo world's truth.parquet."""
    return {row["url"]: row for row in pq.read_table(file.path).to_pylist()}


def scene_of(row: Mapping[str, Any]) -> Scene:
    """Returns the scene that a ground-truth row describes."""
    things = [
        Thing(o["shape"], o["colour"], o["size"], (o["row"], o["column"]), o["x"], o["y"], o["w"], o["h"])
        for o in row["objects"]
    ]
    return Scene(tuple(things), row["ground"])


def truth_of(url: str, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns the ground-truth row of a URL. known: from `read_truth`. Raises VlpipeError if there is none."""
    if url not in known:
        raise VlpipeError(f"the ground-truth file has no row for {url}; {WANTED}")
    return known[url]


def is_right(entry: Mapping[str, Any], truth: Mapping[str, Any]) -> bool:
    """Returns True if a web or synthetic text is correct for its scene. truth: the row's ground truth.

    Raises VlpipeError if it is a web text other than that of the ground truth.
    """
    if entry["source"] != "web":
        return right(entry["text"], scene_of(truth))
    if entry["text"] != truth["text"]:
        raise VlpipeError(f"the ground-truth file has no text {entry['text']!r} for {truth['url']}; {WANTED}")
    return bool(truth["right"])


def _judge(row: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Iterator[Verdict]:
    for entry in row["texts"]:
        if entry["source"] == "human":
            continue
        truth = truth_of(row["url"], known)
        kept = entry["kept"] is not False  # null, no decision, counts as kept, as in training
        noise = truth["noise"] if entry["source"] == "web" else None
        yield Verdict(entry["source"], is_right(entry, truth), noise, kept)


def _results(verdicts: list[Verdict]) -> Iterator[dict[str, Any]]:
    web = [v for v in verdicts if v.source == "web"]
    synth = [v for v in verdicts if v.source != "web"]
    good = [v for v in web if v.right]
    yield _share("web_right", web, "right")
    yield _share("filter_precision", _kept(web), "right")
    yield _share("filter_recall", good, "kept")
    for kind in sorted({v.noise for v in web if v.noise}):
        bad = [v for v in web if v.noise == kind]
        yield _share(f"filter_precision/{kind}", _kept(good + bad), "right")
        yield _share(f"filter_rejected/{kind}", bad, "kept", invert=True)
    if synth:
        yield _share("synth_right", synth, "right")
        yield _share("synth_kept", synth, "kept")
        yield _share("synth_right/kept", _kept(synth), "right")
    yield _share("noise_ratio/before", web, "right", invert=True)
    yield _share("noise_ratio/after", _kept(web + synth), "right", invert=True)


def _kept(verdicts: Iterable[Verdict]) -> list[Verdict]:
    return [v for v in verdicts if v.kept]


def _share(name: str, verdicts: list[Verdict], field: str, invert: bool = False) -> dict[str, Any]:
    hits = sum(getattr(v, field) is not invert for v in verdicts)
    return {"name": name, "value": hits / len(verdicts) if verdicts else None, "num_rows": len(verdicts)}
