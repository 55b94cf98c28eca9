"""Questions about what is said in made films: that they say the truth, and what is learned of answers without subtitles."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.demo.captions import COLOUR_WORDS
from vlpipe.stages.demo.downstream.heard import COLOUR, COLOUR_OF, THING, HeardQuestions
from vlpipe.stages.demo.film import draw_film
from vlpipe.stages.demo.speech import draw_speech
from vlpipe.stages.demo.video_world import TABLES, _said, _seen

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lines, dict[str, str], dict[str, set[str]]]:
    """Questions about 400 films, of which only the truth is made; what is said in each; colours that it shows."""
    folder, said, shown = tmp_path_factory.mktemp("heard"), {}, {}
    rows: dict[str, Lines] = {"seen": [], "said": [], "videos": []}
    for k in range(400):
        rng = np.random.default_rng([8, k])
        segments = draw_film(rng, int(rng.integers(2, 4)), 0.5)
        speech = draw_speech(segments, rng, 0.0, 0.5, 0.1)
        where = {"split": "eval" if k >= 380 else "train", "video": f"f{k}.mp4"}
        subtitles = "none" if k % 10 == 0 else "rolling"
        rows["videos"].append({**where, "duration_s": segments[-1].end_s, "subtitles": subtitles})
        rows["seen"] += [{**where, **_seen(n, one)} for n, one in enumerate(segments)]
        rows["said"] += [{**where, **_said(one)} for one in speech]
        said[f"f{k}"] = " ".join(one.text for one in speech)
        shown[f"f{k}"] = {COLOUR_WORDS[t.colour][0] for s in segments for t in s.scene.things}
    for name, found in rows.items():
        pq.write_table(pa.Table.from_pylist(found, TABLES[name]), folder / f"{name}.parquet")
    files = {name: File(path=str(folder / f"{name}.parquet")) for name in rows}
    out = run_gather(HeardQuestions(**files), [], folder / "out")
    spans = pq.read_table(out.artifacts / "films.parquet").to_pylist()
    assert len(spans) == 400
    lines = [json.loads(line) for line in Path(out.artifacts, "train.jsonl").read_text().splitlines()]
    return lines, said, shown


def test_the_answer_alone_is_said(made: tuple[Lines, dict[str, str], dict[str, set[str]]]) -> None:
    lines, said, _ = made
    assert {one["q"] for one in lines} == {COLOUR, THING}
    for one in lines:
        assert int(one["vid_name"][1:]) % 10  # its film has subtitles
        heard = {COLOUR_OF[word] for word in said[one["vid_name"]].split() if word in COLOUR_OF}
        choices = [one[f"a{k}"] for k in range(5)]
        assert len(set(choices)) == 5
        if one["q"] == COLOUR:
            assert [k for k, name in enumerate(choices) if name in heard] == [one["answer_idx"]]
        start_s, end_s = map(float, one["ts"].split("-"))
        assert 0 <= start_s < end_s


def test_nothing_but_the_subtitles_tells_the_answer(
    made: tuple[Lines, dict[str, str], dict[str, set[str]]],
) -> None:
    lines, _, shown = made
    colours = [one for one in lines if one["q"] == COLOUR]
    answers = Counter(one[f"a{one['answer_idx']}"] for one in colours)
    assert len(answers) == 8
    assert len(set(answers.values())) == 1
    # The wrong choices have a colour that the film shows in most films, too
    decoys = [
        any(one[f"a{k}"] in shown[one["vid_name"]] for k in range(5) if k != one["answer_idx"])
        for one in colours
    ]
    assert np.mean(decoys) > 0.5


def test_another_table_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"split": ["train"]}), tmp_path / "x.parquet")
    other = File(path=str(tmp_path / "x.parquet"))
    with pytest.raises(VlpipeError, match=r"wanted a table of demo\.video_world"):
        run_gather(HeardQuestions(seen=other, said=other, videos=other), [], tmp_path / "out")
