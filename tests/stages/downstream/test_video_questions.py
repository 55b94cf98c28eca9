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
from vlpipe.stages.annotated.tvqa import Tvqa
from vlpipe.stages.common.row import LISTED, text
from vlpipe.stages.downstream.video_questions import AsksVideos, MsrvttQuestions, TvqaQuestions
from vlpipe.stages.video.rows import VIDEOS

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
    test = {name: value for name, value in TVQA.items() if name not in ("answer_idx", "ts")}
    lines = [TVQA, {**test, "qid": 13, "q": "Why?"}, {**TVQA, "qid": 14, "answer_idx": 0}]
    content = "".join(json.dumps(one) + "\n" for one in lines)
    out = asked(TvqaQuestions, content, tmp_path, "show/s01_clip_00.mp4", "s01_clip_01.mp4")
    (row,) = out.table.to_pylist()
    assert [one["text"] for one in row["texts"]] == ["Who sits?", "Why?"]
    first, second = row["choices"]
    choices = [f"person {k}" for k in range(5)]
    assert first == {"question": "Who sits?", "choices": choices, "label": 3, "name": "12", "task": "answer"}
    assert (second["name"], second["label"]) == ("13", None)
    assert [(one.id, one.why) for one in out.rejects] == [("s01_clip_01.mp4", "no_question")]


def test_localised_questions_go_to_the_clip_of_their_times(tmp_path: Path) -> None:
    lines = [
        TVQA,
        {**TVQA, "qid": 13, "q": "Why?", "ts": "3.2-5"},
        {**TVQA, "qid": 14, "q": "How?", "ts": "NaN-NaN"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    questions = File(path=str(tmp_path / "q.jsonl"))
    cues = [{"start_s": 1.4, "end_s": 2.4, "text": "i sit"}, {"start_s": 3.0, "end_s": 4.0, "text": "so"}]
    video = {
        **dict.fromkeys(VIDEOS.names),
        "id": "v",
        "url": "s01_clip_00.mp4",
        "video_id": "s01_clip_00",
        "duration_s": 60.0,
        "cues": [{"words": None, "source": "manual", "lang": None, **one} for one in cues],
    }
    clips = run_map(Tvqa(questions=questions, transcript=True), pa.Table.from_pylist([video], VIDEOS)).table
    found = [(c["start_s"], c["end_s"], c["transcript"]) for c in clips.to_pylist()]
    assert found == [(1.5, 3.2, "i sit"), (3.2, 5.0, "so")]
    out = run_map(TvqaQuestions(questions=questions, localised=True), clips)
    assert [[one["question"] for one in row["choices"]] for row in out.table.to_pylist()] == [
        ["Who sits?"],
        ["Why?"],
    ]
    moved = clips.set_column(clips.column_names.index("end_s"), "end_s", pa.array([3.2, 6.0]))
    (reject,) = run_map(TvqaQuestions(questions=questions, localised=True), moved).rejects
    assert (reject.why, reject.detail) == ("no_question", "s01_clip_00, 3.2 to 6 s")


@pytest.mark.parametrize("times", ["3-2", "from 2 to 3", 5, "1.5-nan"])
def test_times_that_are_none(times: Any, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({**TVQA, "ts": times}))
    with pytest.raises(VlpipeError, match=r"line 1: ts is .*wanted start and end"):
        list(Tvqa(questions=File(path=str(tmp_path / "q.jsonl"))).spans_by_video())


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
