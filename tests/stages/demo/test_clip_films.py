"""Films of one action: the readers of HMDB51, MSR-VTT and MSR-VTT QA read their lists, which say what is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.annotated.msrvtt import MsrVtt
from vlpipe.stages.demo.captions import COLOUR_WORDS
from vlpipe.stages.demo.film import MOTIONS, draw_film
from vlpipe.stages.demo.tasks.clip_films import DemoClipFilms
from vlpipe.stages.downstream.video_questions import MsrvttQuestions
from vlpipe.stages.evaluate.video.splits import read_split


def test_lists_are_read_and_true(tmp_path: Path) -> None:
    run_gather(DemoClipFilms(num_train=4, num_test=2, seed=3), [], tmp_path)
    folder = next(path for path in tmp_path.rglob("splits")).parent
    names = [f"video{k}" for k in range(6)]
    films = [draw_film(np.random.default_rng((3, 11, k)), 1, 0.3)[0] for k in range(6)]
    found = read_split(folder / "splits", 1)
    assert [found[name].label for name in names] == [film.motion for film in films]
    assert [found[name].is_train for name in names] == [True] * 4 + [False] * 2
    assert {path.name for path in (folder / "splits").iterdir()} == {f"{m}_test_split1.txt" for m in MOTIONS}
    assert sorted(path.stem for path in (folder / "videos").iterdir()) == names
    info = File(path=str(folder / "videodatainfo.json"))
    said = MsrVtt(annotations=info, split="test").spans_by_video()
    assert sorted(said) == ["video4", "video5"]
    for name, film in zip(names[4:], films[4:], strict=True):
        (texts,) = said[name].values()
        assert len(texts) == 2
        words = COLOUR_WORDS[film.scene.things[0].colour]
        assert all(any(word in text.split() for word in words) for text in texts)
    asked = MsrvttQuestions(questions=ListFile(path=str(folder / "train_qa.json"))).by_video()
    assert sorted(asked) == [(name, None) for name in names[:4]]
    assert all(one["answer"] for several in asked.values() for one in several)
