"""Questions about videos in the files of TVQA and MSR-VTT QA, put to rows that have the videos' features.

Lei et al. 2018 (TVQA), https://arxiv.org/abs/1809.01696; Xu et al. 2017 (MSR-VTT QA), https://doi.org/10.1145/3123266.3123427.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import with_texts, without
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.lists.folder import wanted
from vlpipe.stages.lists.json_values import load_json, number_or_name
from vlpipe.stages.lists.published.tvqa import read_tvqa
from vlpipe.stages.lists.vqa import normalised
from vlpipe.stages.loading.makers.downstream.asked_answer import SAID
from vlpipe.stages.loading.makers.downstream.choices import CHOICES

Key = tuple[str, tuple[float, float] | None]  # video, and start and end in seconds of a span of it
Questions = dict[Key, list[dict[str, Any]]]  # entries of the column, each with a `question`


@dataclass(frozen=True, kw_only=True)
class AsksVideos(MapStage):
    """Base: sets `texts` to the questions about a row's video (source human) and adds the column MORE with their answers.

    A row's video is its `url` without folders and ending. A question that is asked of a video again, word for word, is left
    out.
    Reject code (filtered): no_question, a row whose video has none.
    """

    NAME: ClassVar[str] = "downstream.video_questions:AsksVideos"
    FILTERS: ClassVar[bool] = True
    MORE: ClassVar[pa.Field]

    questions: File

    def by_video(self) -> Questions:
        """Returns the questions of each video. Raises VlpipeError with the place of what is wrong."""
        raise NotImplementedError

    def keys(self, table: pa.Table) -> list[Key]:
        """Returns what the questions of each row are found by."""
        return [(video_of(url), None) for url in table["url"].to_pylist()]

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.video_questions", id=pa.string(), url=pa.string(), texts=TEXTS)
        return with_field(inp, self.MORE)

    @contextmanager
    def open(self) -> Iterator[Work]:
        known = self.by_video()

        def work(table: pa.Table) -> Out:
            keys = self.keys(table)
            ids = table["id"].to_pylist()
            rejects = [
                Reject(id_, "filtered", "no_question", said(key))
                for id_, key in zip(ids, keys, strict=True)
                if key not in known
            ]
            kept = without(table, rejects)
            asked = [known[key] for key in keys if key in known]
            texts = [
                [text(q, "human") for q in dict.fromkeys(one["question"] for one in several)]
                for several in asked
            ]
            found = with_texts(kept, texts).append_column(self.MORE, pa.array(asked, self.MORE.type))
            return Out(found, rejects)

        yield work


def said(key: Key) -> str:
    """Returns a video, and its span if there is one, in words."""
    video, span = key
    return video if span is None else f"{video}, {span[0]:g} to {span[1]:g} s"


def video_of(url: str) -> str:
    """Returns the name of a video: the last part of its path, without the ending."""
    return os.path.splitext(url.rsplit("/", 1)[-1])[0]


@dataclass(frozen=True, kw_only=True)
class TvqaQuestions(AsksVideos):
    """TVQA's JSON lines {qid, q, a0, ..., a4, answer_idx, vid_name, ts}: five answers each in `choices` (CHOICES).

    A line without answer_idx, as in the test set, has a null label. localised: a question is put to the rows whose `start_s`
    and `end_s` are its times `ts` (`annotated.tvqa:Tvqa` cuts such clips), in place of all of its video; lines whose times
    are not numbers are left out.
    """

    NAME: ClassVar[str] = "downstream.video_questions:TvqaQuestions"
    ADDED: ClassVar[frozenset[str]] = frozenset({"localised"})
    MORE: ClassVar[pa.Field] = pa.field("choices", CHOICES)

    localised: bool = False

    def schema(self, inp: pa.Schema) -> pa.Schema:
        if self.localised:
            need(inp, "downstream.video_questions", start_s=pa.float64(), end_s=pa.float64())
        return super().schema(inp)

    def by_video(self) -> Questions:
        found: dict[Key, dict[str, dict[str, Any]]] = {}
        for line in read_tvqa(self.questions):
            span = line.span() if self.localised else None
            if self.localised and span is None:
                continue
            one = {
                "question": line.question,
                "choices": line.choices,
                "label": line.label,
                "name": line.name,
                "task": "answer",
            }
            found.setdefault((line.video, span), {}).setdefault(line.question, one)
        return {key: list(asked.values()) for key, asked in found.items()}

    def keys(self, table: pa.Table) -> list[Key]:
        if not self.localised:
            return super().keys(table)
        spans = zip(table["start_s"].to_pylist(), table["end_s"].to_pylist(), strict=True)
        return [(video, span) for (video, _), span in zip(super().keys(table), spans, strict=True)]


@dataclass(frozen=True, kw_only=True)
class MsrvttQuestions(AsksVideos):
    """MSR-VTT QA's JSON [{video_id, question, answer}]: the answer of each question in `said` (SAID), with score 1.

    file_name: the name of a video, without its ending.
    """

    NAME: ClassVar[str] = "downstream.video_questions:MsrvttQuestions"
    VERSION: ClassVar[int] = 2  # contractions have their apostrophes
    MORE: ClassVar[pa.Field] = pa.field("said", SAID)

    file_name: str = "video{id}"

    def by_video(self) -> Questions:
        path = self.questions.path
        content = load_json(path)
        if not isinstance(content, list):
            raise VlpipeError(f"{path}: wanted a JSON array of questions, as MSR-VTT QA has")
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for n, one in enumerate(content):
            where = f"{path}: [{n}]"
            question = wanted(one, "question", str, where).strip()
            answer = normalised(wanted(one, "answer", str, where))
            if not question or not answer:
                raise VlpipeError(f"{where}: wanted a question and an answer that are not empty")
            video = self.file_name.format(id=number_or_name(one, "video_id", where))
            one_said = {"question": question, "answer": answer, "score": 1.0}
            found.setdefault(video, {}).setdefault(question, one_said)
        return {(video, None): list(asked.values()) for video, asked in found.items()}
