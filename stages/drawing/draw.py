"""Draws images for texts, and ranks them by a contrastive model. Ramesh et al. 2021, https://arxiv.org/abs/2102.12092."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.stages.common.batches import batch_size_problems, fixed_batches, seed_of
from vlpipe.stages.common.pixels import to_pixels
from vlpipe.stages.common.row import IMAGE_FIELDS, TEXTS, text

if TYPE_CHECKING:
    from PIL import Image

    from vlpipe.stages.common.model import Loaded

DRAWN = pa.schema(
    [
        ("id", pa.string()),
        ("parent", pa.string()),  # the row whose text was drawn
        ("texts", TEXTS),  # that text alone
        ("draw", pa.int32()),  # which of the images of the row, from 0
        ("rank", pa.int32()),  # 0: the best by `score`; without a ranker the order of drawing
        ("score", pa.float32()),  # cosine of image and text; null without a ranker
        *IMAGE_FIELDS,
    ]
)


@dataclass(slots=True)
class Drawing:
    """One image of a text."""

    draw: int
    png: bytes
    size: tuple[int, int]
    score: float | None = None


@dataclass
class Prompt:
    """A row's text, and the best of its drawings so far."""

    id: str
    text: dict[str, Any]
    best: list[Drawing] = field(default_factory=list)

    def add(self, drawing: Drawing, keep: int) -> None:
        """Adds a drawing and keeps the best `keep`; equal ones in the order of drawing."""
        self.best.append(drawing)
        self.best.sort(key=lambda d: (-(d.score or 0.0), d.draw))
        del self.best[keep:]


@dataclass(frozen=True, kw_only=True)
class DrawImages(MapStage):
    """Returns rows DRAWN: for the first text of `source` of each row, `num_images` images, of which `keep` are kept,
    the best ones.

    model: draws the codes of an image for a text (`dalle:Dalle`). painter: paints an image of codes (`dvae:Dvae`). ranker:
    embeds images and texts (CLIP); the paper keeps 1 or 32 of 512. temperature, top_p, top_k: of the codes' distributions.
    seed: image j of row r depends on (seed, id of r, j), not on the batch. Images are PNGs. Reject code: no_text.
    """

    NAME: ClassVar[str] = "drawing.draw:DrawImages"
    FAN_OUT: ClassVar[bool] = True
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    ROW_GROUP_ROWS: ClassVar[int] = 64

    model: Weights
    painter: Weights
    ranker: Weights | None = None
    num_images: Annotated[int, Field(ge=1)] = 16
    keep: Annotated[int, Field(ge=1)] | None = None
    source: str = "human"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "drawing.draw", id=pa.string(), texts=TEXTS)
        return DRAWN

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size)
        if self.keep is not None and self.keep > self.num_images:
            problems.append(f"keep must be at most num_images {self.num_images}, got {self.keep}")
        return problems

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts
        from vlpipe.models.interface.code_capabilities import DrawsCodes, PaintsCodes
        from vlpipe.stages.common.model import capability_problems

        return [
            *capability_problems(self.model, stages, [DrawsCodes]),
            *capability_problems(self.painter, stages, [PaintsCodes]),
            *capability_problems(self.ranker, stages, [EmbedsImages, EmbedsTexts]),
        ]

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts
        from vlpipe.models.interface.code_capabilities import DrawsCodes, PaintsCodes
        from vlpipe.stages.common.model import load

        model, painter = load(self.model, needs=[DrawsCodes]), load(self.painter, needs=[PaintsCodes])
        ranker = None if self.ranker is None else load(self.ranker, needs=[EmbedsImages, EmbedsTexts])

        def work(table: pa.Table) -> Out:
            rejects: list[Reject] = []
            prompts = list(self._prompts(table, rejects))
            wanted = ((prompt, draw) for prompt in prompts for draw in range(self.num_images))
            for batch, num_real in fixed_batches(wanted, self.batch_size):
                images = self._draw(model, painter, batch)
                scores = None if ranker is None else _scores(ranker, images, batch)
                for k, (prompt, draw) in enumerate(batch[:num_real]):
                    score = None if scores is None else scores[k]
                    one = Drawing(draw, _png(images[k]), images[k].size, score)
                    prompt.add(one, self.keep or self.num_images)
            return Out(pa.Table.from_pylist([r for p in prompts for r in _rows(p)], DRAWN), rejects)

        yield work

    def _prompts(self, table: pa.Table, rejects: list[Reject]) -> Iterator[Prompt]:
        for id_, texts in zip(table["id"].to_pylist(), table["texts"].to_pylist(), strict=True):
            own = [t for t in texts or () if t["source"] == self.source and t["kept"] is not False]
            if own:
                yield Prompt(id_, own[0])
            else:
                rejects.append(Reject(id_, "filtered", "no_text", f"no text of source {self.source!r}"))

    def _draw(self, model: Loaded, painter: Loaded, batch: list[tuple[Prompt, int]]) -> list[Image.Image]:
        import torch
        from PIL import Image

        from vlpipe.models.generation.codes import draw_codes
        from vlpipe.models.interface.batch import Stream

        length = model.model.streams()["text"]["max_positions"]
        ids, mask = model.tokenizer.encode([prompt.text["text"] for prompt, _ in batch], length)
        seeds = [seed_of(self.seed, prompt.id, draw) for prompt, draw in batch]
        with torch.inference_mode():
            codes = draw_codes(
                model.model,
                model.outputs(text=Stream(ids, mask.bool())),
                generators=[torch.Generator().manual_seed(seed) for seed in seeds],
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
            )
            pixels = painter.model.paint(codes.to(painter.device))
            values = (255 * pixels.float()).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(np.ascontiguousarray(one)) for one in values]


def _scores(ranker: Loaded, images: list[Image.Image], batch: list[tuple[Prompt, int]]) -> list[float]:
    """Returns the cosine of each image and its text."""
    import torch

    pixels = torch.from_numpy(np.stack([to_pixels(image, ranker.image_size) for image in images]))
    length = ranker.model.streams()["text"]["max_positions"]
    ids, mask = ranker.tokenizer.encode([p.text["text"] for p, _ in batch], length, keep_end=True)
    both = ranker.embed_images(pixels) * ranker.embed_texts(ids, mask)
    found: list[float] = both.float().sum(1).tolist()
    return found


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _rows(prompt: Prompt) -> Iterator[dict[str, Any]]:
    for rank, one in enumerate(prompt.best):
        yield {
            "id": f"{prompt.id}-{one.draw}",
            "parent": prompt.id,
            "texts": [text(prompt.text["text"], prompt.text["source"])],
            "draw": one.draw,
            "rank": rank,
            "score": one.score,
            "sha256": hashlib.sha256(one.png).hexdigest(),
            "format": "PNG",
            "width": one.size[0],
            "height": one.size[1],
            "image": one.png,
        }
