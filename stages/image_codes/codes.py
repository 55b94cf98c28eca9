"""Writes the discrete codes of images by a codebook: DALL-E's encoder, or patches fitted by `image_codes.patches`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.stages.common.batches import batch_size_problems, encode_images, read_images, without
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.inference.ahead import Ahead, Working
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    import torch

IMAGE_CODES = pa.field("image_codes", pa.list_(pa.int32()))


@dataclass(frozen=True, kw_only=True)
class ImageCodes(RunsModel, MapStage):
    """Adds `image_codes` (list<int32>): the codes of the whole image, resized to the codebook's size, row by row.

    model: a codebook, such as the folder of a transformers FlavaImageCodebook. Rows with an undecodable image are rejected
    (fault). It computes in fp32, whatever `precision` says: rounding would give other codes.
    """

    NAME: ClassVar[str] = "image_codes.codes:ImageCodes"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True

    model: Weights
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "image_codes.codes", id=pa.string(), image=pa.binary())
        return with_field(inp, IMAGE_CODES)

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size) + self.worker_problems()

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.image_capabilities import HasImageCodes
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [HasImageCodes])

    @contextmanager
    def open(self) -> Iterator[Work]:
        import torch

        from vlpipe.models.interface.batch import Stream
        from vlpipe.models.interface.image_capabilities import HasImageCodes
        from vlpipe.stages.common.model import load

        model = load(self.model, needs=[HasImageCodes])

        @torch.inference_mode()
        def codes(pixels: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = model.outputs(image=Stream(pixels)).image_codes
            return found

        def work(table: pa.Table, ahead: Ahead) -> Out:
            rejects: list[Reject] = []
            images = read_images(table, model.image_size, rejects, ahead)
            found = [c.cpu().numpy() for _, c in encode_images(images, codes, self.batch_size, ahead)]
            offsets = np.cumsum([0, *map(len, found)])
            flat = pa.array(np.concatenate([np.zeros(0, np.int64), *found]), pa.int32())
            column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, type=IMAGE_CODES.type)
            return Out(with_columns(without(table, rejects), image_codes=column), rejects)

        yield Working(work, self.decode_workers, model.is_on_gpu)
