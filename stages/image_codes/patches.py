"""A codebook of patches by k-means: a small stand-in for a discrete VAE, of pixels alone, for made-up pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import seed_of
from vlpipe.stages.common.pixels import decode, square
from vlpipe.stages.image_codes.kmeans import kmeans, nearest

CODES = pa.schema(
    [
        ("code", pa.int32()),
        ("num_patches", pa.int64()),  # of the sample, whose nearest it is
        (
            "distance",
            pa.float64(),
        ),  # root mean square distance of a pixel's value, from 0 to 1, to the centroid's
    ]
)


@dataclass(frozen=True, kw_only=True)
class FitPatchCodebook(GatherStage):
    """Fits `num_codes` patches to a sample of those of all images. Artifacts: an `ImageCodebook`. Rows: its codes (CODES).

    patch_size: side of a patch in pixels of the image, resized to `image_size`. per_image: random patches of each image, at
    most `max_patches` of all: those with the smallest random numbers, which depend on the seed and the row's id alone.
    Images that cannot be decoded are rejected. Raises VlpipeError if there are fewer different patches than codes.
    """

    NAME: ClassVar[str] = "image_codes.patches:FitPatchCodebook"
    ROWS_ARE: ClassVar[str] = "codes"

    num_codes: Annotated[int, Field(ge=2)]
    patch_size: Annotated[int, Field(ge=1)]
    image_size: Annotated[int, Field(ge=1)]
    per_image: Annotated[int, Field(ge=1)] = 16
    max_patches: Annotated[int, Field(ge=1)] = 200_000
    iterations: Annotated[int, Field(ge=1)] = 20
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "image_codes.patches", id=pa.string(), image=pa.binary())
        return CODES

    def preflight(self) -> list[str]:
        if self.image_size % self.patch_size:
            return [
                f"image_size must be a multiple of patch_size, got {self.image_size} and {self.patch_size}"
            ]
        return []

    def stand_in(self, stages: Mapping[str, Stage]) -> Any:
        """Returns the codebook that this step makes, without its weights."""
        from vlpipe.models.weightless import weightless

        with weightless():
            return self._model()

    def _model(self) -> Any:
        from vlpipe.models.systems.images.beit import ImageCodebook

        sizes = {"num_codes": self.num_codes, "patch_size": self.patch_size}
        return ImageCodebook(codebook={"use": "patches:PatchCentroids", **sizes}, image_size=self.image_size)

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models import folder

        points = self._sample(job)
        if len(np.unique(points, axis=0)) < self.num_codes:
            raise VlpipeError(
                f"image_codes.patches: {len(points)} patches, of which fewer than num_codes {self.num_codes} are different"
            )
        centroids = kmeans(points, self.num_codes, iterations=self.iterations, seed=self.seed)
        model = self._model()
        model.codebook.centroids.data.copy_(torch.from_numpy(centroids))
        folder.save(model, job.artifacts)
        ids, distances = nearest(points, centroids)
        counts = np.bincount(ids, minlength=self.num_codes)
        squares = np.bincount(ids, distances, minlength=self.num_codes)
        spread = np.sqrt(squares / np.maximum(counts, 1) / points.shape[1])
        columns = [np.arange(self.num_codes), counts, spread]
        job.emit(pa.table([pa.array(c, f.type) for c, f in zip(columns, CODES, strict=True)], schema=CODES))
        job.say(f"{len(points):,} patches; the commonest code has {counts.max() / counts.sum():.1%} of them")

    def _sample(self, job: Job) -> npt.NDArray[np.float64]:
        """Returns patches (M, 3 x patch x patch) of pixels from 0 to 1."""
        side = self.image_size // self.patch_size
        ranks, found = np.zeros(0), np.zeros((0, 3 * self.patch_size**2), np.uint8)
        for data in job.inputs:
            for table in data.batches(["id"], ["image"]):
                new_ranks, new = [ranks], [found]
                for id_, image in zip(table["id"].to_pylist(), table["image"], strict=True):
                    try:
                        pixels = square(decode(image.as_py()), self.image_size)
                    except RowFault as fault:
                        job.reject([Reject(id_, "fault", fault.why, fault.detail)])
                        continue
                    rng = np.random.default_rng(seed_of(self.seed, id_))
                    cut = pixels.reshape(side, self.patch_size, side, self.patch_size, 3)
                    every = cut.transpose(0, 2, 4, 1, 3).reshape(side * side, -1)
                    chosen = rng.permutation(len(every))[: self.per_image]
                    new.append(every[chosen])
                    new_ranks.append(rng.random(len(chosen)))
                ranks, found = np.concatenate(new_ranks), np.concatenate(new)
                best = np.sort(np.argsort(ranks, kind="stable")[: self.max_patches])
                ranks, found = ranks[best], found[best]
        return found.astype(np.float64) / 255
