"""Measures whether an alignment of words and image patches finds the objects that the words name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import Pixels, batch_size_problems, read_images
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.loading.rows import usable

if TYPE_CHECKING:
    from vlpipe.models.tokenizer import Tokenizer
    from vlpipe.stages.common.model import Loaded

Coverage = npt.NDArray[np.float32]
Sample = tuple[
    str, Pixels, list[tuple[int, Coverage]]
]  # text, pixels, (token, coverage of its box) of each word


@dataclass(frozen=True, kw_only=True)
class TransportMass(GatherStage):
    """Emits RESULTS, fractions from 0 to 1: `mass`, `mass_uniform` and `mass_se`.

    mass: of what the optimal transport plan (`word_region:WordRegion`) moves from a word, the share that lies on the box of
    the object that it names; a patch counts by the share of it that the box covers. mass_uniform: the same for a plan that
    spreads each word evenly, which is the mean area of the boxes. mass_se: standard error of mass. num_rows: words.

    words: label in `objects` -> the words that name it, each a single token of the model's vocabulary. A label counts if the
    image has one object of it and the row's first usable text has one of its words, once. alignment: parameters of
    `WordRegion`. Images are squares of patches, row by row. Raises VlpipeError if no word can be measured.
    """

    NAME: ClassVar[str] = "evaluate.transport:TransportMass"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    words: dict[str, list[str]]
    alignment: dict[str, Any] = field(default_factory=dict)
    max_text_length: int = 40
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        size = {"width": pa.int32(), "height": pa.int32()}
        need(
            inp, "evaluate.transport", id=pa.string(), texts=TEXTS, image=pa.binary(), objects=OBJECTS, **size
        )
        return RESULTS

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import Fuses
        from vlpipe.stages.common.model import capability_problems, model_of_step

        model = model_of_step(self.model, stages)
        if model is not None and not {"image", "text"} <= set(model.STREAMS):
            return [
                f"step {self.model.step!r} makes a {type(model).__name__}, which does not read images and texts"
            ]
        return capability_problems(self.model, stages, [Fuses])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import Fuses
        from vlpipe.stages.common.model import load

        loaded = load(self.model, self.max_text_length, [Fuses])
        grid = loaded.image_size // loaded.model.config.patch_size
        rejects: list[Reject] = []
        measured: list[tuple[float, float]] = []
        batch: list[Sample] = []
        for sample in self._samples(job, loaded, grid, rejects):
            batch.append(sample)
            if len(batch) == self.batch_size:
                measured += self._masses(batch, loaded)
                batch = []
        measured += self._masses(batch, loaded) if batch else []
        job.reject(rejects)
        if not measured:
            raise VlpipeError(
                "evaluate.transport: no text has a word of `words` that names one object of its image"
            )
        masses, areas = zip(*measured, strict=True)
        found = {
            "mass": float(np.mean(masses)),
            "mass_uniform": float(np.mean(areas)),
            "mass_se": float(np.std(masses) / len(masses) ** 0.5),
        }
        rows = [{"name": name, "value": value, "num_rows": len(masses)} for name, value in found.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _samples(self, job: Job, loaded: Loaded, grid: int, rejects: list[Reject]) -> Iterator[Sample]:
        """Yields the rows with at least one word to measure."""
        tokens = token_of(self.words, loaded.tokenizer)
        for data in job.inputs:
            for table in data.batches(["id", "texts", "objects", "width", "height"], ["image"]):
                rows = table.drop_columns(["image", "texts"]).to_pylist()
                texts = usable(table["texts"])
                for at, pixels in read_images(table, loaded.image_size, rejects):
                    if not texts[at]:
                        continue
                    ids = loaded.tokenizer.ids(texts[at][0])
                    named = [
                        (token, covered(one["box"], rows[at]["width"], rows[at]["height"], grid))
                        for one in named_once(rows[at]["objects"])
                        if (token := said_once(tokens.get(one["label"], ()), ids)) is not None
                    ]
                    if named:
                        yield texts[at][0], pixels, named

    def _masses(self, batch: Sequence[Sample], loaded: Loaded) -> list[tuple[float, float]]:
        """Returns (mass, area of the box) of each word of the batch that was not cut off with the end of its text."""
        import torch

        from vlpipe.models.interface.batch import Stream
        from vlpipe.models.objectives.word_region import WordRegion

        ids, mask = loaded.tokenizer.encode([text for text, _, _ in batch], self.max_text_length)
        text, image = Stream(ids, mask.bool()), Stream(torch.from_numpy(np.stack([p for _, p, _ in batch])))
        with torch.inference_mode():
            plans = WordRegion(**self.alignment).plan(loaded.outputs(text=text, image=image)).cpu().numpy()
        found = []
        for row, (_, _, named) in enumerate(batch):
            for token, coverage in named:
                places = np.flatnonzero(ids[row].numpy() == token)
                moved = plans[row, -coverage.size :, places[0]] if len(places) else np.zeros(1)
                if moved.sum() > 0:  # the last token takes no part
                    mass = float((moved * coverage.ravel()).sum() / moved.sum())
                    found.append((mass, float(coverage.mean())))
        return found


def named_once(objects: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    """Returns the objects whose label no other object of the image has."""
    labels = [one["label"] for one in objects or ()]
    return [one for one in objects or () if labels.count(one["label"]) == 1]


def said_once(tokens: Sequence[int], ids: Sequence[int]) -> int | None:
    """Returns the one of `tokens` that occurs in `ids`, if only one of them does, once."""
    found = [token for token in ids if token in tokens]
    return found[0] if len(found) == 1 else None


def covered(box: Sequence[float], width: int, height: int, grid: int) -> Coverage:
    """Returns the share of each patch (grid, grid) that a box covers. box: x1, y1, x2, y2 in pixels of the image."""
    x1, y1, x2, y2 = (value * grid / size for value, size in zip(box, (width, height) * 2, strict=True))
    edges = np.arange(grid)
    across, down = (
        np.clip(np.minimum(edges + 1, end) - np.maximum(edges, start), 0, 1)
        for start, end in ((x1, x2), (y1, y2))
    )
    return (down[:, None] * across[None]).astype(np.float32)


def token_of(words: Mapping[str, Sequence[str]], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Returns label -> token ids. Raises VlpipeError for a word that is not a single token of the vocabulary."""
    from vlpipe.stages.evaluate.masked import ids_of

    return {label: ids_of(some, tokenizer).tolist() for label, some in words.items()}
