"""The words of objects, attributes and relations in a data set's captions."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.scene_graphs.parse import GRAPHS, KINDS

WORDS = pa.schema([("kind", pa.string()), ("words", pa.string()), ("count", pa.int64())])
FILE = "words.parquet"


@dataclass(frozen=True, kw_only=True)
class SceneWords(GatherStage):
    """Writes words.parquet (WORDS): of each kind (objects, attributes, relations), the words of its nodes in the column
    `scene_graphs`, in lower case, and how often they occur, commonest first.

    at_least: those that occur less often are left out. max_words: of each kind, at most these; counts are thinned while
    they are made, so that memory is bounded by 10 x max_words words (Misra and Gries 1982: counts may then be too low).
    Emits the number of words of each kind (RESULTS).
    """

    NAME: ClassVar[str] = "scene_graphs.words:SceneWords"
    ROWS_ARE: ClassVar[str] = "figures; words are an artifact"

    at_least: Annotated[int, Field(ge=1)] = 2
    max_words: Annotated[int, Field(ge=1)] = 20_000

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "scene_graphs.words", texts=TEXTS, scene_graphs=GRAPHS)
        return RESULTS

    def run(self, job: Job) -> None:
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        for data in job.inputs:
            for table in data.batches(["texts", "scene_graphs"]):
                for row in table.to_pylist():
                    texts, graphs = row["texts"] or (), row["scene_graphs"] or ()
                    if len(texts) != len(graphs):
                        raise VlpipeError(
                            f"scene_graphs.words: a row of {data.name} has {len(graphs)} scene graph(s) for {len(texts)} "
                            "text(s): parse its texts in a step after the last one that adds or removes texts"
                        )
                    for text, graph in zip(texts, graphs, strict=True):
                        for kind in KINDS if graph else ():
                            found = (text["text"][one["start"] : one["end"]].lower() for one in graph[kind])
                            counts[kind].update(found)
                for kind in KINDS:
                    thin(counts[kind], 10 * self.max_words)
        rows = [
            {"kind": kind, "words": words, "count": num}
            for kind in KINDS
            for words, num in sorted(counts[kind].items(), key=lambda one: (-one[1], one[0]))[
                : self.max_words
            ]
            if num >= self.at_least
        ]
        pq.write_table(pa.Table.from_pylist(rows, WORDS), f"{job.artifacts}/{FILE}")
        per_kind = Counter(row["kind"] for row in rows)
        job.emit(
            pa.Table.from_pylist(
                [{"name": k, "value": per_kind[k], "num_rows": counts[k].total()} for k in KINDS], RESULTS
            )
        )


def thin(counts: Counter[str], most: int) -> None:
    """Takes the smallest count off all until at most `most` words are left."""
    while len(counts) > most:
        least = min(counts.values())
        for word in [word for word, num in counts.items() if num == least]:
            del counts[word]
        for word in counts:
            counts[word] -= least


def read_words(path: str) -> dict[str, list[str]]:
    """Returns kind -> its words, commonest first. path: words.parquet, or the folder with it.

    Raises VlpipeError if it is not there.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise VlpipeError(
            f"{file} does not exist: wanted words.parquet of a step scene_graphs.words:SceneWords"
        )
    found: dict[str, list[str]] = defaultdict(list)
    for row in pq.read_table(file, schema=WORDS).to_pylist():
        found[row["kind"]].append(row["words"])
    return {kind: found[kind] for kind in KINDS}
