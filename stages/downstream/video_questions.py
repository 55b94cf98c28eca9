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
from vlpipe.pipeline.storage.text_lines import BadLine
from vlpipe.stages.common.batches import with_texts, without
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.lists.folder import wanted
from vlpipe.stages.lists.json_values import load_json, number_or_name, whole_number
from vlpipe.stages.lists.list import list_files, text_of
from vlpipe.stages.lists.readers import read_rows
from vlpipe.stages.lists.vqa import normalised
from vlpipe.stages.loading.makers.downstream.asked_answer import SAID
from vlpipe.stages.loading.makers.downstream.choices import CHOICES

NUM_CHOICES = 5  # of TVQA
Questions = dict[str, list[dict[str, Any]]]  # video -> entries of the column, each with a `question`


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

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.video_questions", id=pa.string(), url=pa.string(), texts=TEXTS)
        return with_field(inp, self.MORE)

    @contextmanager
    def open(self) -> Iterator[Work]:
        known = self.by_video()

        def work(table: pa.Table) -> Out:
            names = [video_of(url) for url in table["url"].to_pylist()]
            ids = table["id"].to_pylist()
            rejects = [
                Reject(id_, "filtered", "no_question", name)
                for id_, name in zip(ids, names, strict=True)
                if name not in known
            ]
            kept = without(table, rejects)
            asked = [known[name] for name in names if name in known]
            texts = [
                [text(q, "human") for q in dict.fromkeys(one["question"] for one in several)]
                for several in asked
            ]
            found = with_texts(kept, texts).append_column(self.MORE, pa.array(asked, self.MORE.type))
            return Out(found, rejects)

        yield work


def video_of(url: str) -> str:
    """Returns the name of a video: the last part of its path, without the ending."""
    return os.path.splitext(url.rsplit("/", 1)[-1])[0]


@dataclass(frozen=True, kw_only=True)
class TvqaQuestions(AsksVideos):
    """TVQA's JSON lines {qid, q, a0, ..., a4, answer_idx, vid_name}: five answers each in `choices` (CHOICES).

    A line without answer_idx, as in the test set, has a null label. The times `ts` of the answer are not read.
    """

    NAME: ClassVar[str] = "downstream.video_questions:TvqaQuestions"
    MORE: ClassVar[pa.Field] = pa.field("choices", CHOICES)

    def by_video(self) -> Questions:
        found: dict[str, dict[str, dict[str, Any]]] = {}
        names = ("qid", "q", "vid_name", *(f"a{k}" for k in range(NUM_CHOICES)))
        for file in list_files(self.questions.path, (".jsonl", ".json")):
            for where, line in read_rows(file, {name: name for name in (*names, "answer_idx")}):
                if isinstance(line, BadLine):
                    raise line
                said = {name: text_of(line[name], where).strip() for name in names}
                if empty := [name for name, value in said.items() if not value]:
                    raise VlpipeError(f"{where}: {empty[0]!r} is empty")
                label = _label(line["answer_idx"], where)
                one = {
                    "question": said["q"],
                    "choices": [said[f"a{k}"] for k in range(NUM_CHOICES)],
                    "label": label,
                    "name": said["qid"],
                    "task": "answer",
                }
                found.setdefault(said["vid_name"], {}).setdefault(said["q"], one)
        return {video: list(asked.values()) for video, asked in found.items()}


def _label(given: Any, where: str) -> int | None:
    if given is None:
        return None
    label = whole_number({"answer_idx": given}, "answer_idx", where)
    if not 0 <= label < NUM_CHOICES:
        raise VlpipeError(
            f"{where}: answer_idx is {given!r}, wanted a whole number from 0 to {NUM_CHOICES - 1}"
        )
    return label


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
            said = {"question": question, "answer": answer, "score": 1.0}
            found.setdefault(video, {}).setdefault(question, said)
        return {video: list(asked.values()) for video, asked in found.items()}
