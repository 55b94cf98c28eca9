"""Questions about what is said in demo films, in the files of TVQA: they need the subtitles."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.demo.captions import COLOUR_WORDS, SHAPE_WORDS
from vlpipe.stages.demo.downstream.album import SPLITS, Candidate, balanced
from vlpipe.stages.demo.downstream.films import COLOUR_NAMES, FILMS, NAMES, NUM_CHOICES

COLOUR, THING = "which colour is talked about ?", "what is talked about ?"
ANSWERS = {COLOUR: COLOUR_NAMES, THING: NAMES}
COLOUR_OF = {word: words[0] for words in COLOUR_WORDS.values() for word in words}
SHAPE_OF = {word: words[0] for words in SHAPE_WORDS.values() for word in words}
Film = tuple[str, str]  # split and file
Heard = dict[str, tuple[float, float]]  # answer -> when it is said first, in seconds


@dataclass(frozen=True, kw_only=True)
class HeardQuestions(GatherStage):
    """Artifacts: train.jsonl and eval.jsonl in TVQA's form, and films.parquet (`films.FILMS`), a span of each whole film.

    Questions are which colour and what thing is talked about, of films with subtitles; `ts` are the times at which it is
    said. One of the wrong choices is what the film shows and nobody says, if there is such; the others are neither seen nor
    heard, as far as there are enough of those. A film that leaves too few wrong choices has no question. Each colour is as
    often the answer as any other, and things are drawn evenly by the world, so question and choices alone tell nothing.
    seen, said, videos: tables of `demo.video_world`. Raises VlpipeError for other files.
    """

    NAME: ClassVar[str] = "demo.downstream.heard:HeardQuestions"
    ROWS_ARE: ClassVar[str] = "none"

    seen: File
    said: File
    videos: File
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        folder = Path(job.artifacts)
        films = {(row["split"], row["video"]): row for row in _rows(self.videos, "subtitles", "duration_s")}
        spans = [
            {"split": s, "video": v, "start_s": 0.0, "end_s": row["duration_s"], "captions": ["a film"]}
            for (s, v), row in films.items()
        ]
        pq.write_table(pa.Table.from_pylist(spans, FILMS), folder / "films.parquet")
        shown: dict[Film, set[str]] = defaultdict(set)
        for row in _rows(self.seen, "objects"):
            for one in row["objects"]:
                colour, shape = COLOUR_WORDS[one["colour"]][0], SHAPE_WORDS[one["shape"]][0]
                shown[row["split"], row["video"]] |= {colour, f"{colour} {shape}"}
        heard: dict[Film, Heard] = defaultdict(dict)
        for row in _rows(self.said, "start_s", "end_s", "text"):
            for name in _names(row["text"]):
                heard[row["split"], row["video"]].setdefault(name, (row["start_s"], row["end_s"]))
        for split in SPLITS:
            rng = np.random.default_rng([self.seed, 27, SPLITS.index(split)])
            with_subtitles = [
                film for film, row in films.items() if film[0] == split and row["subtitles"] != "none"
            ]
            asked = [one for film in with_subtitles for one in _asked(film, heard[film], rng)]
            kept = balanced((one for one in asked if one.question == COLOUR), rng)
            kept += [one for one in asked if one.question == THING]
            lines = [_line(one, k, heard[one.item], shown[one.item], rng) for k, one in enumerate(kept)]
            order = rng.permutation(len(lines)).tolist()
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(lines[k]) + "\n" for k in order))
            job.say(f"{split}: {len(lines)} questions about {len({one.item for one in kept})} films")


def _rows(file: File, *columns: str) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(file.path, columns=["split", "video", *columns])
        table = table.select(["split", "video", *columns])
    except (pa.ArrowInvalid, KeyError) as error:
        raise VlpipeError(f"{file.path}: wanted a table of demo.video_world ({error})") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _names(text: str) -> list[str]:
    """Returns the colour and the thing that a sentence names, in the most common words; none for chatter."""
    words = text.split()
    colour = next((COLOUR_OF[word] for word in words if word in COLOUR_OF), None)
    shape = next((SHAPE_OF[word] for word in words if word in SHAPE_OF), None)
    return [] if colour is None or shape is None else [colour, f"{colour} {shape}"]


def _asked(film: Film, heard: Heard, rng: np.random.Generator) -> Iterator[Candidate[Film]]:
    """Yields the questions about a film, each with one of its right answers."""
    for question, names in ANSWERS.items():
        right = [name for name in names if name in heard]
        if right and len(names) - len(right) >= NUM_CHOICES - 1:
            yield Candidate(question, right[int(rng.integers(len(right)))], names, film)


def _line(
    one: Candidate[Film], number: int, heard: Heard, shown: set[str], rng: np.random.Generator
) -> dict[str, Any]:
    """Returns a line of TVQA's file."""
    wrong = [name for name in one.answers if name not in heard]
    near, far = ([name for name in wrong if (name in shown) is is_shown] for is_shown in (True, False))
    drawn = [near[k] for k in rng.permutation(len(near))]
    drawn = [*drawn[:1], *(far[k] for k in rng.permutation(len(far))), *drawn[1:]]
    found = [one.answer, *drawn[: NUM_CHOICES - 1]]
    order = rng.permutation(NUM_CHOICES).tolist()
    answers = {f"a{place}": found[k] for place, k in enumerate(order)}
    name, (start_s, end_s) = PurePosixPath(one.item[1]).stem, heard[one.answer]
    times = {"ts": f"{start_s:g}-{end_s:g}", "answer_idx": order.index(0)}
    return {"qid": number, "q": one.question, "vid_name": name, **answers, **times}
