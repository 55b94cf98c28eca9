"""Computes one unit vector per image: by a model, or by the tiny-images descriptor, which needs no model.

A. Torralba, R. Fergus, W. Freeman, "80 Million Tiny Images", PAMI 2008: a thumbnail minus its mean, divided by its
norm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, heavy, need, with_field
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.stages.common.batches import (
    Pixels,
    batch_size_problems,
    encode_images,
    made_up,
    read_images,
    read_prepared,
    without,
)
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.common.scores import not_finite
from vlpipe.stages.inference.ahead import Ahead, Working
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    from PIL import Image

    from vlpipe.stages.common.model import Loaded

TINY_SIZE = 16  # pixels; Torralba uses 32, which only gives longer vectors
TINY_DIM = 3 * TINY_SIZE * TINY_SIZE


@dataclass(frozen=True, kw_only=True)
class Embed(RunsModel, MapStage):
    """Adds the heavy column `embedding`: fixed_size_list<float32>[D], unit norm.

    model: an image-text model, whose image features in the contrastive space are used; without it, the tiny-images
    descriptor is used, D = 768.
    dim: D, the model's `embed_dim`; required if an earlier step makes the model (`model: {from: pretrain}`).
    Rows are rejected (fault) if their image cannot be decoded, or its vector has a value that is not finite (not_finite).
    """

    NAME: ClassVar[str] = "features.embed:Embed"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True

    model: Weights | None = None
    dim: int | None = None
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "features.embed", id=pa.string(), image=pa.binary())
        return with_field(inp, heavy("embedding", pa.list_(pa.float32(), self._dim())))

    def with_resources(self, cpus: float, gpus: float) -> Embed:
        return super().with_resources(
            cpus, gpus if self.model else 0
        )  # the descriptor is the same everywhere

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size) + self.worker_problems()
        if self.model is None and self.dim not in (None, TINY_DIM):
            problems.append(
                f"without `model`, dim must be {TINY_DIM}, got {self.dim}; set `model`, or leave out dim"
            )
        return problems

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import EmbedsImages
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [EmbedsImages])

    def _dim(self) -> int:
        if self.model is None:
            return TINY_DIM
        known = self.dim or (None if self.model.step else dim_in_config(Path(self.model.path)))
        if known is None:
            raise SchemaError(
                "features.embed must know the width of its vectors, and there is no config.json of the model (yet) that "
                "contains it: write `dim: 256` (the `embed_dim` of that model) next to `model:`"
            )
        return known

    @contextmanager
    def open(self) -> Iterator[Work]:
        if self.model is None:
            yield Working(self._tiny_vectors, self.decode_workers)
            return
        from vlpipe.models.interface.capabilities import EmbedsImages
        from vlpipe.stages.common.model import load

        model = load(self.model, needs=[EmbedsImages], precision=self.precision)
        dim = model.model.embed_dim
        if self.dim not in (None, dim):
            raise VlpipeError(
                f"the model has embed_dim {dim}, but the step sets dim: {self.dim}; set dim: {dim}"
            )
        yield Working(partial(self._model_vectors, model), self.decode_workers, model.is_on_gpu)

    def trials(self) -> AbstractContextManager[Callable[[int], None]] | None:
        return None if self.model is None else self._trials(self.model)

    @contextmanager
    def _trials(self, weights: Weights) -> Iterator[Callable[[int], None]]:
        from vlpipe.stages.common.model import load

        model = load(weights, precision=self.precision)

        def compute(size: int) -> None:
            model.embed_images(made_up(size, model.image_size)).cpu()

        yield compute

    def _model_vectors(self, model: Loaded, table: pa.Table, ahead: Ahead) -> Out:
        rejects: list[Reject] = []
        images = read_images(table, model.image_size, rejects, ahead)
        found = encode_images(images, model.embed_images, self.batch_size, ahead)
        vectors = {row: vector.float().cpu().numpy() for row, vector in found}
        lost = [row for row, vector in vectors.items() if not np.isfinite(vector).all()]
        rejects += not_finite(table["id"], lost)
        kept = [vector for row, vector in vectors.items() if row not in lost]
        return _with_embedding(table, kept, rejects, model.model.embed_dim)

    def _tiny_vectors(self, table: pa.Table, ahead: Ahead) -> Out:
        rejects: list[Reject] = []
        found = read_prepared(table, _tiny_of, rejects, ahead, 4 * TINY_DIM)
        return _with_embedding(table, [vector for _, vector in found], rejects, TINY_DIM)


def _with_embedding(table: pa.Table, vectors: list[Pixels], rejects: list[Reject], dim: int) -> Out:
    dtype = pa.list_(pa.float32(), dim)
    flat = np.concatenate([np.zeros(0, np.float32), *vectors])
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=dtype)
    kept = without(table, rejects)
    at = kept.schema.get_field_index("embedding")
    kept = kept if at < 0 else kept.remove_column(at)
    return Out(kept.append_column(heavy("embedding", dtype), column), rejects)


def tiny(data: bytes) -> Pixels:
    """Returns the zero-mean, unit-norm 16 x 16 RGB thumbnail (768,) of an encoded image. RowFault if it cannot be decoded.

    A uniform image has no contrast and gets the constant vector, which is orthogonal to all others.
    """
    return _tiny_of(decode(data))


def _tiny_of(image: Image.Image) -> Pixels:
    from PIL import Image

    thumbnail = image.resize((TINY_SIZE, TINY_SIZE), Image.Resampling.BICUBIC)
    values = np.asarray(thumbnail, np.float64).ravel()
    values -= values.mean()
    if not values.any():
        values += 1
    return (values / np.linalg.norm(values)).astype(np.float32)


def dim_in_config(folder: Path) -> int | None:
    """Returns `embed_dim` (our layout) or `image_text_hidden_size` (transformers) of the folder's config.json, else None."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_bytes())
    found = config.get("embed_dim", config.get("image_text_hidden_size"))
    return None if found is None else int(found)
