"""Generates the demo world: web images with noisy alt-text, images with human-style captions, and ground truth.

Images are files, not Parquet rows, because the next step fetches them over HTTP, as it would fetch real ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.demo import broken, noise
from vlpipe.stages.demo.captions import human_caption, web_caption
from vlpipe.stages.demo.correlated import correlated_picture
from vlpipe.stages.demo.scenes import SIZE_PX, Scene, draw_scene, encode, render

if TYPE_CHECKING:
    from PIL import Image

Share = Annotated[float, Field(ge=0, le=1)]
URL = "http://demo.test/"
NEAR_WAYS = ("reencoded", "brightened", "shifted")

OBJECT = pa.struct(
    [
        ("shape", pa.string()),
        ("colour", pa.string()),
        ("size", pa.string()),
        ("row", pa.string()),
        ("column", pa.string()),
    ]
    + [(name, pa.float32()) for name in "xywh"]  # a box in fractions of the image's side
)
TRUTH = pa.schema(
    [
        ("url", pa.string()),
        ("text", pa.string()),
        ("right", pa.bool_()),
        ("noise", pa.string()),  # kind of noise of a wrong text
        ("fault", pa.string()),  # why the file cannot be fetched or decoded: dead, truncated, html, bomb
        ("group", pa.int64()),  # equal for an image and its planted duplicate; null for other images
        ("copy", pa.string()),  # within a group: original, exact or near (duplicate)
        ("ground", pa.string()),
        ("objects", pa.list_(OBJECT)),
    ]
)


@dataclass(frozen=True, slots=True)
class Listing:
    """One image of the web list, before it gets a file name."""

    data: bytes
    kind: str  # JPEG or PNG
    scene: Scene
    group: int | None = None
    copy: str | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Captioned:
    """A scene with human captions."""

    file_name: str
    scene: Scene
    image: Image.Image
    captions: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class World(GatherStage):
    """Generates a world. Artifacts: images/NAME, web.parquet (url, text), human_train.json, human_eval.json (COCO format).

    Artifact truth.parquet (TRUTH), the ground truth of web.parquet, is for evaluation stages only. duplicates, dead,
    corrupt: fractions of `num_web` images that get a planted duplicate (half exact, half near), that cannot be fetched, and
    that cannot be decoded. web.parquet has num_web rows, plus the duplicates and one decompression bomb.

    layout: "scattered", objects that do not depend on each other; "correlated", nine of which each tells its neighbours
    (`demo.correlated`); texts and truth are then of the one in the middle.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset({"layout"})
    ROWS_ARE: ClassVar[str] = "none"

    seed: int = 0
    num_web: Annotated[int, Field(ge=1)] = 4000
    num_human: Annotated[int, Field(ge=1)] = 1500
    num_eval: Annotated[int, Field(ge=1)] = 500
    captions_per_image: Annotated[int, Field(ge=1)] = 5
    two_things: Share = 0.0  # fraction of scenes with two objects
    wrong: Share = 0.5  # fraction of wrong web texts
    duplicates: Share = 0.06
    dead: Share = 0.01
    corrupt: Share = 0.01
    layout: Literal["scattered", "correlated"] = "scattered"

    NAME: ClassVar[str] = "demo.world:World"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def preflight(self) -> list[str]:
        if self.layout == "correlated" and self.two_things:
            return [f"two_things: scenes of layout correlated have nine objects, got {self.two_things}"]
        return []

    def run(self, job: Job) -> None:
        folder = Path(job.artifacts)
        (folder / "images").mkdir(exist_ok=True)
        self._write_human(folder, "human_train", self.num_human, stream=1)
        self._write_human(folder, "human_eval", self.num_eval, stream=2)
        listings = self._listings()
        job.say(f"{len(listings)} web images, {self.num_human} + {self.num_eval} with human captions")
        self._write_web(folder, listings)

    def _write_human(self, folder: Path, name: str, num: int, stream: int) -> None:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, one in enumerate(self.human(name, num, stream)):
            (folder / "images" / one.file_name).write_bytes(encode(one.image, "JPEG"))
            images.append({"id": index, "file_name": one.file_name, "width": SIZE_PX, "height": SIZE_PX})
            for caption in one.captions:
                annotations.append({"id": len(annotations), "image_id": index, "caption": caption})
        (folder / f"{name}.json").write_text(json.dumps({"images": images, "annotations": annotations}))

    def human(self, name: str, num: int, stream: int) -> Iterator[Captioned]:
        """Yields `num` scenes with their captions. name: of their files; stream: of random numbers."""
        for index in range(num):
            rng = np.random.default_rng([self.seed, stream, index])
            scene, image = self._picture(rng)
            captions = [human_caption(scene, rng) for _ in range(self.captions_per_image)]
            yield Captioned(f"{name}_{index:06d}.jpg", scene, image, captions)

    def _picture(self, rng: np.random.Generator) -> tuple[Scene, Image.Image]:
        if self.layout == "correlated":
            return correlated_picture(rng)
        scene = draw_scene(rng, self.two_things)
        return scene, render(scene, rng)

    def _listings(self) -> list[Listing]:
        """Returns all web images in list order, which is random."""
        num_copies = round(self.duplicates * self.num_web)
        num_dead, num_corrupt = round(self.dead * self.num_web), round(self.corrupt * self.num_web)
        made: list[Listing] = []
        for index in range(self.num_web):
            rng = np.random.default_rng([self.seed, 3, index])
            scene, image = self._picture(rng)
            kind = "PNG" if rng.random() < 0.1 else "JPEG"
            one = Listing(encode(image, kind), kind, scene)
            if index < num_copies:
                made += _with_copy(one, image, index)
            elif index < num_copies + num_dead:
                made.append(replace(one, data=b"", fault="dead"))
            elif index < num_copies + num_dead + num_corrupt:
                made.append(_corrupted(one, index))
            else:
                made.append(one)
        made.append(Listing(broken.bomb_png(), "PNG", made[0].scene, fault="bomb"))
        order = np.random.default_rng([self.seed, 4]).permutation(len(made))
        return [made[i] for i in order]

    def _write_web(self, folder: Path, listings: Sequence[Listing]) -> None:
        scenes = [one.scene for one in listings]
        truth: list[dict[str, Any]] = []
        for index, one in enumerate(listings):
            rng = np.random.default_rng([self.seed, 5, index])
            name = f"web_{index:06d}.{'png' if one.kind == 'PNG' else 'jpg'}"
            if one.fault != "dead":
                (folder / "images" / name).write_bytes(one.data or broken.html_page(name))
            text, kind = (
                noise.wrong_text(one.scene, scenes, rng)
                if rng.random() < self.wrong
                else (web_caption(one.scene, rng), None)
            )
            truth.append(_truth_row(URL + name, text, kind, one))
        table = pa.Table.from_pylist(truth, TRUTH)
        pq.write_table(table, folder / "truth.parquet")
        pq.write_table(table.select(["url", "text"]), folder / "web.parquet")


def _with_copy(one: Listing, image: Image.Image, index: int) -> list[Listing]:
    """Returns the image and its planted duplicate: alternately exact, and near (changed in one of NEAR_WAYS)."""
    first = replace(one, group=index, copy="original")
    if index % 2 == 0:
        return [first, replace(first, copy="exact")]
    changed = _near(image, NEAR_WAYS[index // 2 % len(NEAR_WAYS)])
    return [first, replace(first, data=changed, kind="JPEG", copy="near")]


def _near(image: Image.Image, way: str) -> bytes:
    """Returns a near duplicate: JPEG at quality 70, 6 % brighter, or shifted by one pixel."""
    from PIL import Image, ImageChops

    if way == "reencoded":
        return _jpeg(image, 70)
    if way == "brightened":
        return _jpeg(Image.eval(image, lambda v: min(255, round(v * 1.06))), 88)
    return _jpeg(ImageChops.offset(image, 1, 0), 88)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    import io

    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _corrupted(one: Listing, index: int) -> Listing:
    """Returns the image truncated, or, for each fourth index, without data: `_write_web` then writes an HTML page."""
    if index % 4 == 0:
        return replace(one, data=b"", kind="JPEG", fault="html")
    return replace(one, data=broken.truncated(one.data), fault="truncated")


def _truth_row(url: str, text: str, kind: str | None, one: Listing) -> dict[str, Any]:
    objects = []
    for thing in one.scene.things:
        row, column = thing.place
        objects.append({**asdict(thing), "row": row, "column": column})
    return {
        "url": url,
        "text": text,
        "right": kind is None,
        "noise": kind,
        "fault": one.fault,
        "group": one.group,
        "copy": one.copy,
        "ground": one.scene.ground,
        "objects": objects,
    }
