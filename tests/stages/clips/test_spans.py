from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.clips.spans import SpanClips
from vlpipe.stages.video.rows import CLIPS

Videos = Callable[..., pa.Table]


def test_spans_of_a_table_become_clips(tmp_path: Path, videos: Videos) -> None:
    spans = {
        "video": ["0.mp4", "1.mp4", "0.mp4", "0.mp4", "0.mp4", "9.mp4"],
        "start_s": [5.0, 1.0, 0.0, 3.0, None, 0.0],
        "end_s": [9.5, 2.0, 4.0, 3.0, 4.0, 1.0],
        "captions": [
            ["a dog", "an animal"],
            ["a cat"],
            [" ", "a bird"],
            ["no time"],
            ["no start"],
            ["elsewhere"],
        ],
    }
    pq.write_table(pa.table(spans), tmp_path / "spans.parquet")
    out = run_map(SpanClips(spans=File(path=str(tmp_path / "spans.parquet"))), videos([[], [], []]))
    assert out.table.schema == CLIPS
    found = [
        (r["parent"], r["start_s"], r["end_s"], [(t["text"], t["source"]) for t in r["texts"]])
        for r in out.table.to_pylist()
    ]
    assert found == [
        ("video0", 0, 4, [("a bird", "human")]),
        ("video0", 5, 9.5, [("a dog", "human"), ("an animal", "human")]),
        ("video1", 1, 2, [("a cat", "human")]),
    ]
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [("video2", "filtered", "no_span")]
    assert len(set(out.table["id"].to_pylist())) == 3


def test_youcook2s_csv_is_read_as_it_is(tmp_path: Path, videos: Videos) -> None:
    lines = [
        "end,start,task,text,video_id",
        "60,47,226,pick the ends,0",
        "89,67,226,combine all,0",
        "60,47,226,cut,0",
    ]
    (tmp_path / "val.csv").write_text("\n".join(lines) + "\n")
    stage = SpanClips(
        spans=File(path=str(tmp_path / "val.csv")), by="video_id", start="start", end="end", text="text"
    )
    rows = run_map(stage, videos([[]])).table.to_pylist()
    found = [(r["start_s"], r["end_s"], [t["text"] for t in r["texts"]]) for r in rows]
    assert found == [(47, 60, ["pick the ends", "cut"]), (67, 89, ["combine all"])]


def test_digits_of_a_csv_are_text(tmp_path: Path, videos: Videos) -> None:
    """A reader that guesses types makes 7 of 007, which no video has, and a number of a text that is one."""
    (tmp_path / "a.csv").write_text('video_id,start,end,text\n007,1,2,12\n"007",2,3,NA\n,3,4,x\n007,NA,5,y\n')
    given: Any = {"by": "video_id", "start": "start", "end": "end", "text": "text"}
    rows = videos([[]])
    rows = rows.set_column(rows.schema.get_field_index("video_id"), "video_id", pa.array(["007"]))
    out = run_map(SpanClips(spans=File(path=str(tmp_path / "a.csv")), **given), rows)
    assert [(r["start_s"], [t["text"] for t in r["texts"]]) for r in out.table.to_pylist()] == [
        (1, ["12"]),
        (2, ["NA"]),
    ]
    assert not out.rejects


def test_video_ids_that_pandas_made_floats(tmp_path: Path, videos: Videos) -> None:
    columns = {"video_id": [0.0, None], "start_s": [1.0, 2.0], "end_s": [2.0, 3.0], "captions": ["x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    out = run_map(SpanClips(spans=File(path=str(tmp_path / "a.parquet")), by="video_id"), videos([[]]))
    assert [r["texts"][0]["text"] for r in out.table.to_pylist()] == ["x"]


def test_times_and_texts_of_another_kind_are_named(tmp_path: Path, videos: Videos) -> None:
    def run(start: Any, text: Any) -> None:
        columns = {"video": ["0.mp4"] * 2, "start_s": [start] * 2, "end_s": [9.0] * 2, "captions": [text] * 2}
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        run_map(SpanClips(spans=File(path=str(tmp_path / "a.parquet"))), videos([[]]))

    run("1.5", "x")
    with pytest.raises(VlpipeError, match=r"a\.parquet row 1: wanted a time in seconds, got '00:01'"):
        run("00:01", "x")
    with pytest.raises(VlpipeError, match=r"a\.parquet row 1: wanted a text or a list of texts, got 3"):
        run(1.0, 3)
    for lines, said in (
        (
            '0.mp4,1,2,"a dog\n1.mp4,1,2,a cat\n',
            "unexpected end of data",
        ),  # the open quotation mark hides a row
        ("0.mp4,1,2,a dog, a cat\n", "line 2 has 5 fields, wanted 4"),
    ):
        (tmp_path / "b.csv").write_text("video,start_s,end_s,captions\n" + lines)
        with pytest.raises(VlpipeError, match=rf"b\.csv cannot be read as .*: {said}"):
            run_map(SpanClips(spans=File(path=str(tmp_path / "b.csv"))), videos([[]]))
    (tmp_path / "b.csv").write_text("video,start_s,end_s,captions,captions\n0.mp4,1,2,a,b\n")
    with pytest.raises(SchemaError, match=r"has the column 'captions' 2 times; wanted one"):
        run_map(SpanClips(spans=File(path=str(tmp_path / "b.csv"))), videos([[]]))


def test_mistakes_are_told(tmp_path: Path, videos: Videos) -> None:
    (tmp_path / "spans.csv").write_text("video,start_s,end_s,caption\n0.mp4,1,2,x\n")
    stage: Any = SpanClips(spans=File(path=str(tmp_path / "spans.csv")))
    with pytest.raises(SchemaError, match="has no column 'captions'; did you mean 'caption'"):
        run_map(stage, videos([[]]))
    with pytest.raises(VlpipeError, match=r"gone\.csv cannot be read as \.parquet, \.csv or \.tsv"):
        run_map(SpanClips(spans=File(path=str(tmp_path / "gone.csv"))), videos([[]]))


def test_a_transcript_is_what_is_said_in_the_clip(tmp_path: Path, videos: Videos) -> None:
    """Captions with their middle in the clip, of one track: an automatic one repeats what people wrote."""
    pq.write_table(
        pa.table(
            {"video": ["0.mp4", "0.mp4"], "start_s": [0.0, 4.0], "end_s": [4.0, 9.0], "captions": ["x", "y"]}
        ),
        tmp_path / "spans.parquet",
    )
    cues = [(0, 2, "first"), (3, 4.5, "then "), (4, 6, "after"), (8.5, 10, "outside")]
    rows = videos([[*cues]], duration_s=12.0)
    stage = SpanClips(spans=File(path=str(tmp_path / "spans.parquet")), transcript=True)
    out = run_map(stage, rows)
    assert out.table.schema == stage.schema(rows.schema)
    assert out.table["transcript"].to_pylist() == ["first then", "after"]
    silent = run_map(stage, videos([[]], duration_s=12.0))
    assert silent.table["transcript"].to_pylist() == [None, None]
