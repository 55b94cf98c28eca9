"""Features and labels of labelled images, read once by a frozen model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.stages.common.batches import Pixels, batch_size_problems, encode_images, read_images
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.inference.ahead import Ahead
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    import torch

    from vlpipe.stages.common.model import Loaded

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
EMBEDDING = "image_feat"


@dataclass(frozen=True)
class Labelled:
    """N images. features: (N, D); labels: (N,); ids: of the rows, in order."""

    features: Features
    labels: Labels
    ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, at: npt.NDArray[np.generic]) -> Labelled:
        """Returns the images `at`: indices, or a mask (N,)."""
        index = np.arange(len(self))[at]
        return Labelled(self.features[index], self.labels[index], [self.ids[k] for k in index])


@dataclass(frozen=True, kw_only=True)
class ProbesImages(RunsModel, GatherStage):
    """Base of stages that read features of labelled images: the column `label` (int32); rows without one are left out.

    output: what of the model is the feature: the embedding that it compares images by, or another of its outputs, such as
    `class_token`; of several vectors per image the mean. Images are resized without a crop. memory_bytes: raises VlpipeError
    if the features of an input need more.
    """

    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = RunsModel.NOT_IN_KEY | {"memory_bytes"}

    model: Weights
    output: str = EMBEDDING
    batch_size: int = 64
    memory_bytes: Annotated[int, Field(ge=1)] = 16 << 30

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, self.NAME.partition(":")[0], id=pa.string(), label=pa.int32(), image=pa.binary())
        return RESULTS

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size) + self.worker_problems()

    def preflight_after(self, stages: Any) -> list[str]:
        from vlpipe.stages.common.model import capability_problems, model_of_step

        problems = capability_problems(self.model, stages, self._needs())
        model = model_of_step(self.model, stages)
        if not problems and model is not None and not hasattr(type(model), self.output):
            problems.append(f"output: a {type(model).__name__} has no output {self.output!r}")
        return problems

    def _needs(self) -> list[type]:
        from vlpipe.models.interface.capabilities import EmbedsImages

        return [EmbedsImages] if self.output == EMBEDDING else []

    def labelled(self, job: Job, model: Loaded, inputs: Sequence[Dataset]) -> Labelled:
        """Returns the labelled images of `inputs`.

        Raises VlpipeError if there is none, for labels below 0, and if the step's inputs number the same folders of classes
        differently.
        """
        if inputs[0] is job.inputs[0]:
            need_same_classes(job.inputs)
        rejects: list[Reject] = []
        features, labels, ids = [], [], []
        num_bytes = 0
        with Ahead(self.decode_workers, model.is_on_gpu) as ahead:
            rows = _rows(inputs, model.image_size, rejects, ahead)
            for (id_, label), row in encode_images(rows, self._encoder(model), self.batch_size, ahead):
                features.append(row.numpy())
                labels.append(label)
                ids.append(id_)
                num_bytes += features[-1].nbytes
                if num_bytes > self.memory_bytes:
                    raise VlpipeError(
                        f"the features of {' and '.join(data.name for data in inputs)} need more than memory_bytes = "
                        f"{self.memory_bytes:,}"
                    )
        job.reject(rejects)
        names = " and ".join(data.name for data in inputs)
        if not labels:
            raise VlpipeError(f"{self.NAME}: {names} has no readable image with a label")
        if min(labels) < 0:
            raise VlpipeError(f"{self.NAME}: {names} has a label {min(labels)}; labels count from 0")
        return Labelled(np.stack(features), np.array(labels, np.int64), ids)

    def _encoder(self, model: Loaded) -> Any:
        """Returns the function from pixels (B, 3, S, S) to features (B, D) on the CPU."""
        import torch

        from vlpipe.models.interface.batch import Stream

        @torch.inference_mode()
        def encode(pixels: torch.Tensor) -> torch.Tensor:
            try:
                found = getattr(model.outputs(image=Stream(pixels)), self.output)
            except AttributeError as error:
                raise VlpipeError(f"output: {error}") from error
            if not isinstance(found, torch.Tensor) or found.ndim < 2 or not found.is_floating_point():
                raise VlpipeError(f"output: {self.output!r} is not a vector per image")
            if found.ndim == 4:  # maps of channels
                found = found.flatten(2).transpose(1, 2)
            while found.ndim > 2:
                found = found.mean(1)
            if not found.isfinite().all():
                raise VlpipeError(f"output: {self.output!r} has values that are not finite")
            return found.float().cpu()

        return encode


def need_same_classes(inputs: Sequence[Dataset]) -> None:
    """Raises VlpipeError if a label stands for one folder of `classification.class_folders` in one input and for another in
    another: without `classes`, folders are numbered in the order of their names, and a set may lack one."""
    known: dict[int, tuple[str, str]] = {}
    for data in inputs if len(inputs) > 1 else ():
        if not {"url", "texts"} <= set(data.schema.names):
            continue
        for table in data.batches(["label", "url", "texts"]):
            columns = (table[name].to_pylist() for name in ("label", "url", "texts"))
            for label, url, texts in zip(*columns, strict=True):
                folder, slash, _ = (url or "").partition("/")
                if label is None or not slash or [one["text"] for one in texts or ()] != [folder]:
                    continue
                name, other = known.setdefault(label, (folder, data.name))
                if name != folder:
                    raise VlpipeError(
                        f"label {label} is {name!r} in {other} and {folder!r} in {data.name}; list all `classes` in the "
                        "steps that read the folders"
                    )


def _rows(
    inputs: Sequence[Dataset], size: int, rejects: list[Reject], ahead: Ahead
) -> Iterator[tuple[tuple[str, int], Pixels]]:
    """Yields ((row id, label), pixels (3, S, S)) of the rows that have both."""
    for data in inputs:
        for table in data.batches(["id", "label"], ["image"]):
            table = table.filter(table["label"].is_valid())
            ids, labels = table["id"].to_pylist(), table["label"].to_pylist()
            for row, pixels in read_images(table, size, rejects, ahead):
                yield (ids[row], labels[row]), pixels


def results(figures: dict[str, float | None], num_rows: int) -> pa.Table:
    """Returns RESULTS rows of figures that are all of `num_rows` rows."""
    rows = [{"name": name, "value": value, "num_rows": num_rows} for name, value in figures.items()]
    return pa.Table.from_pylist(rows, RESULTS)


def shares(truth: Labels, guess: Labels, name: str, trained: Labels) -> dict[str, float | None]:
    """Returns the figures of a classifier: NAME, `NAME_mean_per_class`, `NAME_prior` (share of the most frequent class of
    `trained`) and `NAME_se` (standard error of NAME)."""
    right = guess == truth
    share = float(right.mean())
    return {
        name: share,
        f"{name}_mean_per_class": float(np.mean([right[truth == k].mean() for k in np.unique(truth)])),
        f"{name}_prior": float((truth == np.bincount(trained).argmax()).mean()),
        f"{name}_se": float(np.sqrt(share * (1 - share) / len(truth))),
    }
