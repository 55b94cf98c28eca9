"""The images of made tasks, with their truth; scenes with a given object; questions whose answers are equally frequent."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.demo.scenes import COLOURS, SHAPES, Scene, draw_scene, encode, render
from vlpipe.stages.demo.world import OBJECT, Share

TRUTH = pa.schema([("url", pa.string()), ("ground", pa.string()), ("objects", pa.list_(OBJECT))])
SPLITS = ("train", "eval")
T = TypeVar("T")


class Album:
    """A folder of images, and what they show."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._truth: list[dict[str, Any]] = []

    def add(self, name: str, scene: Scene, rng: np.random.Generator, grey: bool = False) -> None:
        """Draws a scene as the file `name`. grey: without colours."""
        image = render(scene, rng)
        path = self.folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if path.suffix == ".png" else "JPEG"
        path.write_bytes(encode(image.convert("L").convert("RGB") if grey else image, kind))
        objects = [{**asdict(one), "row": one.place[0], "column": one.place[1]} for one in scene.things]
        self._truth.append({"url": name, "ground": scene.ground, "objects": objects})

    def write_lines(self, name: str, lines: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> None:
        """Writes a file of JSON lines in random order, so that neighbours have nothing in common."""
        order = rng.permutation(len(lines)).tolist()
        (self.folder / name).write_text("".join(json.dumps(lines[place]) + "\n" for place in order))

    def write_truth(self) -> None:
        pq.write_table(pa.Table.from_pylist(self._truth, TRUTH), self.folder / "truth.parquet")


@dataclass(frozen=True, kw_only=True)
class TaskWorld(GatherStage):
    """Base of made tasks. Artifacts: images/NAME, truth.parquet (TRUTH, by file name), and files for train and eval.

    num_train, num_eval: what is counted, the subclass says. two_things: share of scenes with two objects.
    """

    ROWS_ARE: ClassVar[str] = "none"
    STREAM: ClassVar[
        int
    ]  # of random numbers; 1 to 15 are those of other worlds, so that no image is the same

    seed: int = 0
    num_train: Annotated[int, Field(ge=1)] = 1500
    num_eval: Annotated[int, Field(ge=1)] = 500
    two_things: Share = 0.6

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        album = Album(Path(job.artifacts))
        for split, num in zip(SPLITS, (self.num_train, self.num_eval), strict=True):
            job.say(f"{split}: {self.make(album, split, num)}")
        album.write_truth()

    def make(self, album: Album, split: str, num: int) -> str:
        """Writes images and files of a split. Returns what there is, in words."""
        raise NotImplementedError

    def rng(self, split: str, *at: int) -> np.random.Generator:
        """Returns the generator of a thing of a split."""
        return np.random.default_rng([self.seed, self.STREAM, SPLITS.index(split), *at])

    def scene(self, rng: np.random.Generator) -> Scene:
        return draw_scene(rng, self.two_things)


def with_thing(scene: Scene, shape: str, colour: str) -> Scene:
    """Returns the scene with its first object changed; another one that had this shape or colour takes the old one."""
    first, *others = scene.things
    swapped = [
        replace(
            one,
            shape=first.shape if one.shape == shape else one.shape,
            colour=first.colour if one.colour == colour else one.colour,
        )
        for one in others
    ]
    return replace(scene, things=(replace(first, shape=shape, colour=colour), *swapped))


def without_thing(scene: Scene, shape: str, colour: str, rng: np.random.Generator) -> Scene:
    """Returns the scene with one object that has this shape in another colour, or this colour and another shape."""
    if rng.random() < 0.5:
        return with_thing(scene, shape, other_than(colour, list(COLOURS), rng))
    return with_thing(scene, other_than(shape, SHAPES, rng), colour)


def other_than(value: str, values: Sequence[str], rng: np.random.Generator) -> str:
    """Returns one of the other values, each with the same probability."""
    others = [one for one in values if one != value]
    return others[int(rng.integers(len(others)))]


@dataclass(frozen=True, slots=True)
class Candidate(Generic[T]):
    """A question with its answer, one of `answers`; item: whatever belongs to it."""

    question: str
    answer: str
    answers: tuple[str, ...]
    item: T


def balanced(candidates: Iterable[Candidate[T]], rng: np.random.Generator) -> list[Candidate[T]]:
    """Returns candidates such that each answer to a question is as frequent as any other, in the given order.

    Of each answer, as many are drawn as its question's rarest answer has: none, where one of `answers` does not occur.
    """
    cells: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    given = list(candidates)
    for place, one in enumerate(given):
        cells[one.question][one.answer].append(place)
    kept: list[int] = []
    for of_answer in cells.values():
        answers = given[next(iter(of_answer.values()))[0]].answers
        num = min(len(of_answer.get(answer, ())) for answer in answers)
        for answer in answers:
            kept += rng.permutation(of_answer.get(answer, [0]))[:num].tolist()
    return [given[place] for place in sorted(kept)]
