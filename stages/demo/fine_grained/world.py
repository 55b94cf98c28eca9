"""Generates tests of what a model knows of single objects, attributes and relations, from scenes with known truth.

The files have the forms of the published tests, so that the same stages read both: SugarCrepe, Winoground, POPE, and COCO's
instances for CHAIR.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.demo.captions import SHAPE_WORDS, human_caption
from vlpipe.stages.demo.fine_grained.contrasts import KINDS, SWAPS, contrast, exchanged
from vlpipe.stages.demo.fine_grained.polling import NEGATIVES, polls
from vlpipe.stages.demo.scenes import SHAPES, SIZE_PX, Scene, draw_scene, encode, render
from vlpipe.stages.demo.world import OBJECT

TRUTH = pa.schema([("url", pa.string()), ("ground", pa.string()), ("objects", pa.list_(OBJECT))])
# Streams of random numbers; 1 to 5 are those of `demo.world`, so that no image of the two is the same.
SCENES, CONTRASTS, PAIRS, POLLS, CAPTIONS = 11, 12, 13, 14, 15


class Drawn(NamedTuple):
    """An image: its file name and what it shows."""

    name: str
    scene: Scene


@dataclass(frozen=True, kw_only=True)
class FineGrainedWorld(GatherStage):
    """Generates test files. Its images are of the same kind as those of `demo.world:World`, and none is among them.

    Artifacts: images/NAME. choices/KIND.json: SugarCrepe's form, one right and one wrong caption per image, for each of
    `contrasts.KINDS`. winoground.jsonl: Winoground's form, with `tag`, one of `contrasts.SWAPS`.
    pope/object_NEGATIVES.json (`circle`) and pope/attribute_NEGATIVES.json (`red circle`): POPE's form, for each of
    `polling.NEGATIVES`; and pope/attribute_recombined.json, whose absent objects have the colour of one object and the
    shape of the other. instances.json, captions.json: COCO's form. synonyms.txt: the words of each shape, as CHAIR's.
    truth.parquet (TRUTH): all objects of all images, by file name.

    num_images: images of all files but winoground.jsonl. num_pairs: pairs of images of that. two_things: share of the
    `num_images` images with two objects; the others have no swap.
    """

    ROWS_ARE: ClassVar[str] = "none"
    NAME: ClassVar[str] = "demo.fine_grained.world:FineGrainedWorld"

    seed: int = 0
    num_images: Annotated[int, Field(ge=1)] = 500
    num_pairs: Annotated[int, Field(ge=1)] = 400
    captions_per_image: Annotated[int, Field(ge=1)] = 5
    two_things: Annotated[float, Field(ge=0, le=1)] = 1.0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        folder = Path(job.artifacts)
        for name in ("images", "choices", "pope"):
            (folder / name).mkdir(exist_ok=True)
        images = [self._image(folder, number) for number in range(self.num_images)]
        num_choices = self._write_choices(folder / "choices", images)
        pairs = self._write_pairs(folder)
        num_polls = self._write_polls(folder / "pope", images)
        self._write_coco(folder, images)
        truth = pa.Table.from_pylist([_truth_row(one) for one in (*images, *pairs)], TRUTH)
        pq.write_table(truth, folder / "truth.parquet")
        job.say(f"{num_choices} choices, {self.num_pairs} pairs, {num_polls} questions")

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])

    def _image(self, folder: Path, number: int) -> Drawn:
        rng = self._rng(SCENES, number)
        return _drawn(folder, f"fine_{number:06d}.jpg", draw_scene(rng, self.two_things), rng)

    def _write_choices(self, folder: Path, images: Sequence[Drawn]) -> int:
        num_choices = 0
        for place, kind in enumerate(KINDS):
            found: dict[str, dict[str, str]] = {}
            for number, (name, scene) in enumerate(images):
                if kind in SWAPS and len(scene.things) < 2:
                    continue
                right, wrong = contrast(scene, kind, self._rng(CONTRASTS, place, number))
                found[str(len(found))] = {"filename": name, "caption": right, "negative_caption": wrong}
            num_choices += len(found)
            if found:
                (folder / f"{kind}.json").write_text(json.dumps(found, indent=0))
        return num_choices

    def _write_pairs(self, folder: Path) -> list[Drawn]:
        images: list[Drawn] = []
        lines: list[dict[str, Any]] = []
        for number in range(self.num_pairs):
            kind = SWAPS[number % len(SWAPS)]
            rng = self._rng(PAIRS, number)
            scene = draw_scene(rng, 1.0)
            captions = contrast(scene, kind, rng)
            both = [
                _drawn(folder, f"pair_{number:06d}_{side}.jpg", one, rng)
                for side, one in enumerate((scene, exchanged(scene, kind)))
            ]
            sides = {f"image_{side}": one.name for side, one in enumerate(both)}
            sides |= {f"caption_{side}": caption for side, caption in enumerate(captions)}
            lines.append({"id": number, **sides, "tag": kind})
            images += both
        _write_lines(folder / "winoground.jsonl", lines)
        return images

    def _write_polls(self, folder: Path, images: Sequence[Drawn]) -> int:
        asked: list[tuple[str, Iterable[tuple[int, str, bool]]]] = []
        names: dict[str, Callable[[Scene], list[str]]] = {
            "object": lambda scene: [thing.shape for thing in scene.things],
            "attribute": lambda scene: [f"{thing.colour} {thing.shape}" for thing in scene.things],
        }
        for place, (level, of) in enumerate(names.items()):
            objects = [of(one.scene) for one in images]
            asked += [
                (f"{level}_{kind}", polls(objects, kind, self._rng(POLLS, place))) for kind in NEGATIVES
            ]
        asked.append(("attribute_recombined", _recombined(images)))
        total = 0
        for kind, questions in asked:
            lines = [
                {
                    "question_id": number,
                    "image": images[image].name,
                    "text": f"Is there {'an' if name[0] in 'aeiou' else 'a'} {name} in the image?",
                    "label": "yes" if is_there else "no",
                }
                for number, (image, name, is_there) in enumerate(questions)
            ]
            if lines:
                _write_lines(folder / f"{kind}.json", lines)
            total += len(lines)
        return total

    def _write_coco(self, folder: Path, images: Sequence[Drawn]) -> None:
        listed = [
            {"id": number, "file_name": one.name, "width": SIZE_PX, "height": SIZE_PX}
            for number, one in enumerate(images)
        ]
        categories = [{"id": number, "name": shape} for number, shape in enumerate(SHAPES)]
        annotations = [
            {
                "image_id": number,
                "category_id": SHAPES.index(thing.shape),
                "bbox": [round(SIZE_PX * value, 3) for value in (thing.x, thing.y, thing.w, thing.h)],
                "attributes": [thing.colour, thing.size],
            }
            for number, one in enumerate(images)
            for thing in one.scene.things
        ]
        objects = [{"id": number, **one} for number, one in enumerate(annotations)]
        content: dict[str, Any] = {"images": listed, "annotations": objects, "categories": categories}
        (folder / "instances.json").write_text(json.dumps(content))
        captions: list[dict[str, Any]] = []
        for number, one in enumerate(images):
            rng = self._rng(CAPTIONS, number)
            for _ in range(self.captions_per_image):
                caption = human_caption(one.scene, rng)
                captions.append({"id": len(captions), "image_id": number, "caption": caption})
        (folder / "captions.json").write_text(json.dumps({"images": listed, "annotations": captions}))
        lines = [", ".join(words) for words in SHAPE_WORDS.values()]
        (folder / "synonyms.txt").write_text("\n".join(lines) + "\n")


def _drawn(folder: Path, name: str, scene: Scene, rng: np.random.Generator) -> Drawn:
    (folder / "images" / name).write_bytes(encode(render(scene, rng), "JPEG"))
    return Drawn(name, scene)


def _recombined(images: Sequence[Drawn]) -> Iterable[tuple[int, str, bool]]:
    for number, (_, scene) in enumerate(images):
        if len(scene.things) == 2:
            one, other = scene.things
            for thing, colour in ((one, other.colour), (other, one.colour)):
                yield number, f"{thing.colour} {thing.shape}", True
                yield number, f"{colour} {thing.shape}", False


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _truth_row(one: Drawn) -> dict[str, Any]:
    objects = []
    for thing in one.scene.things:
        row, column = thing.place
        objects.append({**asdict(thing), "row": row, "column": column})
    return {"url": one.name, "ground": one.scene.ground, "objects": objects}
