"""Questions about videos: the files of TVQA and MSR-VTT QA, put to rows by the name of the video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import LISTED, text
from vlpipe.stages.downstream.video_questions import AsksVideos, MsrvttQuestions, TvqaQuestions

TVQA: dict[str, Any] = {
    "qid": 12,
    "q": "Who sits?",
    "vid_name": "s01_clip_00",
    "ts": "1.5-3.2",
    "answer_idx": 3,
    "show_name": "any",
    **{f"a{k}": f"person {k}" for k in range(5)},
}
MSRVTT = [
    {"id": 1, "video_id": 7010, "question": "what is a man doing?", "answer": "Talk"},
    {"id": 2, "video_id": 7010, "question": "who talks?", "answer": "man"},
]


def asked(cls: type[AsksVideos], content: str, folder: Path, *urls: str) -> Out:
    (folder / "q.json").write_text(content)
    rows = [{"id": url, "url": url, "texts": [text("said in it", "asr")]} for url in urls]
    stage: Any = cls(questions=File(path=str(folder / "q.json")))
    return run_map(stage, pa.Table.from_pylist(rows, LISTED))


def test_five_answers_of_tvqa(tmp_path: Path) -> None:
    lines = [TVQA, {**TVQA, "qid": 13, "q": "Why?", "answer_idx": None}, {**TVQA, "qid": 14, "answer_idx": 0}]
    content = "".join(json.dumps(one) + "\n" for one in lines)
    out = asked(TvqaQuestions, content, tmp_path, "show/s01_clip_00.mp4", "s01_clip_01.mp4")
    (row,) = out.table.to_pylist()
    assert [one["text"] for one in row["texts"]] == ["Who sits?", "Why?"]
    first, second = row["choices"]
    choices = [f"person {k}" for k in range(5)]
    assert first == {"question": "Who sits?", "choices": choices, "label": 3, "name": "12", "task": "answer"}
    assert (second["name"], second["label"]) == ("13", None)
    assert [(one.id, one.why) for one in out.rejects] == [("s01_clip_01.mp4", "no_question")]


def test_answers_of_msrvtt(tmp_path: Path) -> None:
    out = asked(MsrvttQuestions, json.dumps(MSRVTT), tmp_path, "video7010.mp4", "video1.mp4")
    (row,) = out.table.to_pylist()
    assert row["said"] == [
        {"question": "what is a man doing?", "answer": "talk", "score": 1.0},
        {"question": "who talks?", "answer": "man", "score": 1.0},
    ]
    assert [one["text"] for one in row["texts"]] == ["what is a man doing?", "who talks?"]
    assert [one.id for one in out.rejects] == ["video1.mp4"]


@pytest.mark.parametrize(
    ("cls", "content", "wrong"),
    [
        (
            TvqaQuestions,
            {**TVQA, "answer_idx": 5},
            "line 1: answer_idx is .*5.*, wanted a whole number from 0 to 4",
        ),
        (TvqaQuestions, {**TVQA, "a2": " "}, "line 1: 'a2' is empty"),
        (MsrvttQuestions, {}, "wanted a JSON array of questions"),
        (
            MsrvttQuestions,
            [{**MSRVTT[0], "answer": "the"}],
            r"\[0\]: wanted a question and an answer",
        ),
        (
            MsrvttQuestions,
            [{**MSRVTT[0], "video_id": None}],
            r"\[0\]: wanted a whole number or a name as 'video_id'",
        ),
        (TvqaQuestions, {**TVQA, "a2": ["x"]}, "line 1: wanted text, got"),
        (
            TvqaQuestions,
            {**TVQA, "answer_idx": float("inf")},
            "line 1: wanted a whole number as 'answer_idx'",
        ),
    ],
)
def test_what_is_wrong_in_a_file(cls: type[AsksVideos], content: Any, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match=wrong):
        asked(cls, json.dumps(content) + "\n", tmp_path, "video7010.mp4")
