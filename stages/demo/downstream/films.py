"""Questions about demo films in the files of TVQA and MSR-VTT QA, made from what the films show."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from vlpipe.stages.demo.scenes import COLOURS, SHAPES

NUM_CHOICES = 5  # TVQA's
FIRST, LAST = "what comes first ?", "what comes last ?"
COLOUR_NAMES = tuple(COLOUR_WORDS[one][0] for one in COLOURS)
SHAPE_NAMES = tuple(SHAPE_WORDS[one][0] for one in SHAPES)
NAMES = tuple(f"{colour} {shape}" for colour in COLOUR_NAMES for shape in SHAPE_NAMES)
FILMS = pa.schema(
    [
        ("split", pa.string()),
        ("video", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("captions", pa.list_(pa.string())),
    ]
)
Shown = list[tuple[str, str]]  # colour and shape of the objects of a segment; the first one moves


@dataclass(frozen=True, kw_only=True)
class FilmQuestions(GatherStage):
    """Artifacts: train.jsonl and eval.jsonl in TVQA's form, train.json and eval.json in MSR-VTT QA's, and films.parquet
    (FILMS), a span of each film as a whole.

    Questions are the colour of a shape and the shape of a colour, of objects that share it with no other of the film, and
    what comes first and last. seen: seen.parquet of `demo.video_world`. Each answer to a question, word for word, is as
    frequent as any other; wrong choices are drawn alike: one of what the film shows elsewhere, if there is one, and others
    of what it does not show. So the choices tell nothing. MSR-VTT QA's, whose answers are words, are of colours and shapes.
    """

    NAME: ClassVar[str] = "demo.downstream.films:FilmQuestions"
    ROWS_ARE: ClassVar[str] = "none"

    seen: File
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        folder = Path(job.artifacts)
        films, spans = _films(self.seen.path)
        pq.write_table(pa.Table.from_pylist(spans, FILMS), folder / "films.parquet")
        for split in SPLITS:
            rng = np.random.default_rng([self.seed, 25, SPLITS.index(split)])
            of_split = {video: shown for (where, video), shown in films.items() if where == split}
            asked = [one for video, shown in of_split.items() for one in questions(video, shown)]
            exact = balanced((one for one in asked if one.question not in (FIRST, LAST)), rng)
            kept = [*exact, *(one for one in asked if one.question in (FIRST, LAST))]
            lines = [tvqa(one, number, of_split[one.item], rng) for number, one in enumerate(kept)]
            order = rng.permutation(len(lines)).tolist()
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(lines[k]) + "\n" for k in order))
            (folder / f"{split}.json").write_text(json.dumps([msrvtt(one) for one in exact]))
            job.say(f"{split}: {len(kept)} questions about {len({one.item for one in kept})} films")


def _films(path: str) -> tuple[dict[tuple[str, str], list[Shown]], list[dict[str, Any]]]:
    """Returns (split, video) -> what each segment shows, and spans of whole films. Raises VlpipeError for another file."""
    films: dict[tuple[str, str], list[Shown]] = defaultdict(list)
    ends: dict[tuple[str, str], float] = {}
    try:
        rows = pq.read_table(path, columns=["split", "video", "segment", "end_s", "objects"]).to_pylist()
    except (pa.ArrowInvalid, KeyError) as error:
        raise VlpipeError(f"{path}: wanted seen.parquet of demo.video_world ({error})") from error
    for row in sorted(rows, key=lambda one: (one["split"], one["video"], one["segment"])):
        key = row["split"], row["video"]
        words = [(COLOUR_WORDS[o["colour"]][0], SHAPE_WORDS[o["shape"]][0]) for o in row["objects"]]
        films[key].append(words)
        ends[key] = max(ends.get(key, 0.0), row["end_s"])
    spans = [
        {"split": split, "video": video, "start_s": 0.0, "end_s": end, "captions": ["a film"]}
        for (split, video), end in ends.items()
    ]
    return dict(films), spans


def questions(video: str, shown: Sequence[Shown]) -> Iterator[Candidate[str]]:
    """Yields the questions about a film."""
    things = {thing for segment in shown for thing in segment}
    for colour, shape in sorted(things):
        if sum(shape == other for _, other in things) == 1:
            yield Candidate(f"what colour is the {shape} ?", colour, COLOUR_NAMES, video)
        if sum(colour == other for other, _ in things) == 1:
            yield Candidate(f"what shape is the {colour} thing ?", shape, SHAPE_NAMES, video)
    first, last = (" ".join(segment[0]) for segment in (shown[0], shown[-1]))
    if first != last:
        yield Candidate(FIRST, first, NAMES, video)
        yield Candidate(LAST, last, NAMES, video)


def tvqa(
    one: Candidate[str], number: int, shown: Sequence[Shown], rng: np.random.Generator
) -> Mapping[str, Any]:
    """Returns a line of TVQA's file: the question with five answers in random order."""
    there = _words(thing for segment in shown for thing in segment)
    close = _words(segment[0] for segment in shown) if one.question in (FIRST, LAST) else there
    near = [text for text in one.answers if text in close and text != one.answer]
    far = [text for text in one.answers if text not in there]
    wrong = [near[k] for k in rng.permutation(len(near))[:1]]
    wrong += [far[k] for k in rng.permutation(len(far))[: NUM_CHOICES - 1 - len(wrong)]]
    spare = [text for text in near if text not in wrong]
    wrong += [spare[k] for k in rng.permutation(len(spare))[: NUM_CHOICES - 1 - len(wrong)]]
    found = [one.answer, *wrong]
    order = rng.permutation(NUM_CHOICES).tolist()
    answers = {f"a{place}": found[k] for place, k in enumerate(order)}
    name = PurePosixPath(one.item).stem
    return {"qid": number, "q": one.question, "vid_name": name, **answers, "answer_idx": order.index(0)}


def _words(things: Iterable[tuple[str, str]]) -> set[str]:
    return {text for colour, shape in things for text in (colour, shape, f"{colour} {shape}")}


def msrvtt(one: Candidate[str]) -> dict[str, Any]:
    """Returns an entry of MSR-VTT QA's file."""
    return {"video_id": PurePosixPath(one.item).stem, "question": one.question, "answer": one.answer}
