"""Adds the probability of one label of an image classifier as a column: NSFW, watermark or any other label."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import batch_size_problems, encode_images, read_prepared, without
from vlpipe.stages.common.rule import scored
from vlpipe.stages.common.scores import device, load_model, name_of, processed, with_columns
from vlpipe.stages.inference.ahead import Ahead, Working
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ImageClassifier(RunsModel, MapStage):
    """Adds `column`: float32, P(label) from 0 to 1, by a transformers image classifier (folder or hub id).

    encoder: the model's name in rules; default: the hub id or the folder's name. vlpipe includes no model. Rows with an
    undecodable image are rejected (fault).
    """

    NAME: ClassVar[str] = "filter.nsfw:ImageClassifier"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = RunsModel.NOT_IN_KEY | {"encoder"}

    model: Weights
    label: str = "nsfw"
    column: str = "nsfw"
    encoder: str = ""
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.nsfw", id=pa.string(), image=pa.binary())
        return with_field(inp, scored(self.column, pa.float32(), name_of(self.model, self.encoder)))

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size) + self.worker_problems()
        config = Path(self.model.path) / "config.json"
        if self.model.step is None and config.is_file():
            try:
                labels = json.loads(config.read_bytes())["id2label"].values()
            except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
                return [*problems, f"{config} names no labels (id2label): {error!r}"]
            problems += [] if self.label in labels else [self._no_label(labels)]
        return problems

    def _no_label(self, labels: Any) -> str:
        return f"the model has no label {self.label!r}{did_you_mean(self.label, labels)}"

    @contextmanager
    def open(self) -> Iterator[Work]:
        from transformers import AutoModelForImageClassification

        model = load_model(AutoModelForImageClassification, self.model, self.precision)
        if self.label not in model.config.label2id:
            raise VlpipeError(self._no_label(model.config.label2id))
        at = int(model.config.label2id[self.label])
        prepare = processed(self.model)

        def work(rows: pa.Table, ahead: Ahead) -> Out:
            rejects: list[Reject] = []
            images = read_prepared(rows, prepare, rejects, ahead)
            found = encode_images(images, partial(probabilities, model), self.batch_size, ahead)
            scores = {row: float(probs[at]) for row, probs in found}
            values = pa.array([scores.get(row) for row in range(rows.num_rows)], pa.float32())
            return Out(without(with_columns(rows, **{self.column: values}), rejects), rejects)

        yield Working(work, self.decode_workers, device().type == "cuda")


def probabilities(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Class probabilities: (B, 3, S, S) -> (B, labels); each row sums to 1."""
    import torch

    with torch.inference_mode():
        return (
            model(pixel_values=pixels.to(device(), non_blocking=True).to(model.dtype))
            .logits.float()
            .softmax(1)
            .cpu()
        )
