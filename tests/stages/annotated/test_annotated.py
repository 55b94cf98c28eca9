"""YouCook2, MSR-VTT, CrossTask: files in their published forms become clips; other forms are errors that say where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.annotated.crosstask import CrossTask
from vlpipe.stages.annotated.msrvtt import MsrVtt
from vlpipe.stages.annotated.youcook2 import YouCook2
from vlpipe.stages.video.rows import CLIPS, VIDEOS


def videos(**durations: float | None) -> pa.Table:
    rows = [
        {"id": f"row {name}", "url": name, "video": f"{name}.mp4", "num_bytes": 1, "sha256": "0"}
        | {"video_id": name, "duration_s": duration_s, "cues": []}
        for name, duration_s in durations.items()
    ]
    return pa.Table.from_pylist(rows, VIDEOS)


def clips(out: Any) -> list[tuple[str, float, float, list[str]]]:
    assert out.table.schema == CLIPS
    assert all(t["source"] == "human" for row in out.table.to_pylist() for t in row["texts"])
    return [
        (r["video_id"], r["start_s"], r["end_s"], [t["text"] for t in r["texts"]])
        for r in out.table.to_pylist()
    ]


def file(path: Path, content: Any) -> File:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return File(path=str(path))


def recipe(subset: str, *steps: tuple[list[Any], str]) -> dict[str, Any]:
    annotations = [{"segment": s, "id": n, "sentence": text} for n, (s, text) in enumerate(steps)]
    about = {"duration": 310.5, "subset": subset, "recipe_type": "113", "video_url": "https://youtu.be/x"}
    return {**about, "annotations": annotations}


def test_youcook2(tmp_path: Path) -> None:
    database = {
        "GLd3aX16zBg": recipe("training", ([90, 102], "spread margarine on bread"), ([4, 7.5], "cut it ")),
        "-JZgBCJUTkA": recipe("validation", ([1, 2], "boil water")),
    }
    path = file(tmp_path / "youcookii_annotations_trainval.json", {"database": database})
    rows = videos(**{"GLd3aX16zBg": None, "-JZgBCJUTkA": None, "other": None})
    out = run_map(YouCook2(annotations=path), rows)
    assert clips(out) == [
        ("GLd3aX16zBg", 4, 7.5, ["cut it"]),
        ("GLd3aX16zBg", 90, 102, ["spread margarine on bread"]),
        ("-JZgBCJUTkA", 1, 2, ["boil water"]),
    ]
    assert [(r.id, r.why) for r in out.rejects] == [("row other", "no_span")]
    out = run_map(YouCook2(annotations=path, subset="validation"), rows)
    assert clips(out) == [("-JZgBCJUTkA", 1, 2, ["boil water"])]
    with pytest.raises(VlpipeError, match="no video has an annotation of subset testing"):
        run_map(YouCook2(annotations=path, subset="testing"), rows)


@pytest.mark.parametrize("segment", [[7, 7], [3], ["a", 4], [-1, 4], [5, 4], [None, 4]])
def test_a_step_without_a_time_is_named(tmp_path: Path, segment: list[Any]) -> None:
    content = {"database": {"v": recipe("training", ([0, 1], "cut"), (segment, "stir"))}}
    with pytest.raises(VlpipeError, match=r"y\.json: database\.v\.annotations\[1\]: wanted a segment"):
        run_map(YouCook2(annotations=file(tmp_path / "y.json", content)), videos(v=None))


def test_another_json_is_no_youcook2(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match="wanted a JSON object with the key 'database' and an object"):
        run_map(YouCook2(annotations=file(tmp_path / "y.json", [])), videos(v=None))


MSRVTT = {
    "info": {"version": "1.0"},
    "videos": [
        {"video_id": "video0", "split": "train", "category": 9, "start time": 137.72, "end time": 149.44},
        {"video_id": "video7", "split": "test", "category": 3, "start time": 0.0, "end time": 9.0},
    ],
    "sentences": [
        {"caption": "a car is shown", "video_id": "video0", "sen_id": 1},
        {"caption": "a man sings ", "video_id": "video7", "sen_id": 2},
        {"caption": "a man on a stage", "video_id": "video7", "sen_id": 0},
    ],
}


def test_msrvtt(tmp_path: Path) -> None:
    path = file(tmp_path / "videodatainfo.json", MSRVTT)
    rows = videos(video0=11.7, video7=9.0, video8=1.0)
    out = run_map(MsrVtt(annotations=path), rows)
    assert clips(out) == [
        ("video0", 0, 11.7, ["a car is shown"]),
        ("video7", 0, 9, ["a man sings", "a man on a stage"]),
    ]
    assert [(r.id, r.why) for r in out.rejects] == [("row video8", "no_span")]
    tested = run_map(MsrVtt(annotations=path, split="test"), rows)
    assert [c[0] for c in clips(tested)] == ["video7"]
    with pytest.raises(VlpipeError, match="no video is of split 'validate'; there are test, train"):
        run_map(MsrVtt(annotations=path, split="validate"), rows)


def test_msrvtts_clips_are_whole_videos(tmp_path: Path) -> None:
    path = file(tmp_path / "videodatainfo.json", MSRVTT)
    out = run_map(MsrVtt(annotations=path), videos(video0=None, video7=9.0))
    assert [(r.id, r.why) for r in out.rejects] == [("row video0", "no_duration")]
    assert len(clips(out)) == 1
    with pytest.raises(SchemaError, match="duration_s"):
        MsrVtt(annotations=path).schema(VIDEOS.remove(VIDEOS.get_field_index("duration_s")))


def test_msrvtts_test_of_1000(tmp_path: Path) -> None:
    lines = "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person is connecting something\n"
    path = file(tmp_path / "MSRVTT_JSFUSION_test.csv", lines)
    out = run_map(MsrVtt(annotations=path), videos(video9770=13.0))
    assert clips(out) == [("video9770", 0, 13, ["a person is connecting something"])]
    assert MsrVtt(annotations=path, split="test").preflight() == ["split: a .csv of MSR-VTT has no splits"]
    empty = file(tmp_path / "b.csv", "video_id,sentence\nvideo1,\n")
    with pytest.raises(VlpipeError, match=r"b\.csv line 2: wanted a video_id and a sentence"):
        run_map(MsrVtt(annotations=empty), videos(video1=1.0))
    with pytest.raises(VlpipeError, match="has no column 'sentence'; there are: video_id"):
        run_map(MsrVtt(annotations=file(tmp_path / "c.csv", "video_id\nv\n")), videos(v=1.0))


def test_an_open_quotation_mark_hides_no_rows(tmp_path: Path) -> None:
    lines = 'video_id,sentence\nvideo1,"a man says hi\nvideo2,a dog\nvideo3,a cat\n'
    with pytest.raises(VlpipeError, match=r"d\.csv line 2: unexpected end of data"):
        run_map(MsrVtt(annotations=file(tmp_path / "d.csv", lines)), videos(video1=1.0))
    twice = file(tmp_path / "e.csv", "video_id,sentence,sentence\nvideo1,a,b\n")
    with pytest.raises(VlpipeError, match="has the column 'sentence' 2 times"):
        run_map(MsrVtt(annotations=twice), videos(video1=1.0))


def test_a_sentence_of_no_video_is_named(tmp_path: Path) -> None:
    content = {**MSRVTT, "sentences": [{"caption": "a", "video_id": "video5", "sen_id": 0}]}
    with pytest.raises(VlpipeError, match=r"sentences\[0\]: video5 is not among the videos"):
        run_map(MsrVtt(annotations=file(tmp_path / "v.json", content)), videos(video5=1.0))


TASKS = (
    "23521\nMake Jello Shots\nhttps://x\n3\npour water,pour powder,stir\n\n1\nOther\nhttps://y\n1\nwait\n\n"
)


def test_crosstask(tmp_path: Path) -> None:
    tasks, folder = file(tmp_path / "tasks_primary.txt", TASKS), tmp_path / "annotations"
    folder.mkdir()
    file(folder / "23521_a_b-c.csv", "1,16.5,20\n3,30,31.5\n1,40,41\n2,50,50\n")
    file(folder / "1_a_b-c.csv", "1,16.5,20\n")
    file(folder / "99_v.csv", "1,0,2\n")  # of another task
    given = {"tasks": tasks, "annotations": File(path=str(folder))}
    rows = videos(**{"a_b-c": None, "v": None})
    out = run_map(CrossTask(**given), rows)
    assert clips(out) == [
        ("a_b-c", 16.5, 20, ["wait", "pour water"]),
        ("a_b-c", 30, 31.5, ["stir"]),
        ("a_b-c", 40, 41, ["pour water"]),
    ]
    assert [(r.id, r.why) for r in out.rejects] == [("row v", "no_span")]
    listed = file(tmp_path / "videos_val.csv", "1,a_b-c,https://www.youtube.com/watch?v=a_b-c\n")
    assert clips(run_map(CrossTask(**given, videos=listed), rows)) == [("a_b-c", 16.5, 20, ["wait"])]
    with pytest.raises(VlpipeError, match=r"v\.csv, line 1: wanted TASK,VIDEO,URL, got"):
        run_map(CrossTask(**given, videos=file(tmp_path / "v.csv", "1,a\n")), rows)
    file(folder / "23521_z.csv", "4,0,1\n")
    with pytest.raises(
        VlpipeError, match=r"23521_z\.csv, line 1: wanted step,start,end with a step from 1 to 3"
    ):
        run_map(CrossTask(**given), rows)
