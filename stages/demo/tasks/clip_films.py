"""Generates short films of one action each, in the files of HMDB51, MSR-VTT and MSR-VTT QA."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.demo.film import MOTIONS, draw_film, pictures
from vlpipe.stages.demo.video_captions import captions, questions
from vlpipe.stages.demo.video_files import CODINGS, write_film


@dataclass(frozen=True, kw_only=True)
class DemoClipFilms(GatherStage):
    """Artifacts: videos/videoNUMBER.mp4, one segment of `demo.video_world`'s films each, and what is known of them:

    splits/ACTION_test_split1.txt, lines `NAME MARK` as HMDB51's, 1 for training, 2 for the test. The action is the motion of
    the object; no frame alone tells right from left, up from down, growing from shrinking.
    videodatainfo.json: captions as MSR-VTT's, splits train and test. train_qa.json, test_qa.json: questions as MSR-VTT QA's.

    two_things: share of films with a second object.
    """

    NAME: ClassVar[str] = "demo.tasks.clip_films:DemoClipFilms"
    ROWS_ARE: ClassVar[str] = "none"

    seed: int = 0
    num_train: Annotated[int, Field(ge=1)] = 210
    num_test: Annotated[int, Field(ge=1)] = 140
    captions_per_film: Annotated[int, Field(ge=1)] = 2
    two_things: Annotated[float, Field(ge=0, le=1)] = 0.3

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        folder = Path(job.artifacts)
        for name in ("videos", "splits"):
            (folder / name).mkdir()
        lines: dict[str, list[str]] = {motion: [] for motion in MOTIONS}
        videos: list[dict[str, Any]] = []
        sentences: list[dict[str, Any]] = []
        asked: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
        for index in range(self.num_train + self.num_test):
            seed = (self.seed, 11, index)
            rng = np.random.default_rng(seed)
            film = draw_film(rng, 1, self.two_things)
            name, split = f"video{index}", "train" if index < self.num_train else "test"
            write_film(folder / "videos" / f"{name}.mp4", pictures(film, seed), CODINGS[0])
            lines[film[0].motion].append(f"{name}.mp4 {1 if split == 'train' else 2}\n")
            videos.append({"video_id": name, "split": split, "start time": 0.0, "end time": film[0].end_s})
            for caption in captions(film[0], self.captions_per_film, rng)["captions"]:
                sentences.append({"caption": caption, "video_id": name, "sen_id": len(sentences)})
            for one in questions(film, rng):
                number = len(asked[split])
                asked[split].append(
                    {"id": number, "video_id": index, "question": one["question"], "answer": one["answer"]}
                )
        for motion, some in lines.items():
            (folder / "splits" / f"{motion}_test_split1.txt").write_text("".join(some), encoding="utf-8")
        files: dict[str, Any] = {"videodatainfo": {"videos": videos, "sentences": sentences}}
        files |= {f"{split}_qa": some for split, some in asked.items()}
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
