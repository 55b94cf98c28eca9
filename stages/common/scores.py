"""Code shared by stages that score with a model: the model's name, loading, image input, added columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.engine.worker.device import device_of_step
from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.storage.hf_hub import HUB_ID
from vlpipe.stages.common.batches import Pixels
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.inference.precision import Precision, placed

if TYPE_CHECKING:
    import torch
    from PIL import Image


def name_of(model: Weights | None, given: str, *, default: str = "", endings: Sequence[str] = ()) -> str:
    """Returns the encoder's name for rules: `given`; else, for a model, `step:NAME`, its hub id or its folder's name.

    default: the name if there is neither. endings: a folder name loses the first of these suffixes that it has.
    """
    if given or model is None:
        return given or default
    if model.step:
        return f"step:{model.step}"
    if HUB_ID.fullmatch(model.path) and not Path(model.path).exists():
        return model.path
    name = Path(model.path).name
    return next((name.removesuffix(end) for end in endings if name.endswith(end)), name)


def not_finite(ids: pa.ChunkedArray, rows: Iterable[int]) -> list[Reject]:
    """Returns one reject (fault, not_finite) for each of the `rows`, in which a model gave a score that is no finite number.

    Stored as null, such a score would count as one that nobody asked for.
    """
    detail = "the model gives no finite number; set precision: fp32, or look for damaged weights"
    return [Reject(ids[row].as_py(), "fault", "not_finite", detail) for row in sorted(set(rows))]


def with_columns(rows: pa.Table, **columns: pa.Array) -> pa.Table:
    """Returns `rows` with columns added, or replaced if they exist."""
    for name, values in columns.items():
        at = rows.schema.get_field_index(name)
        rows = rows.append_column(name, values) if at < 0 else rows.set_column(at, name, values)
    return rows


def load_model(cls: Any, weights: Weights, precision: Precision = "fp32") -> Any:
    """Loads a transformers model for inference, on a GPU if the step asks for one. Raises VlpipeError if that fails.

    cls: a transformers class with `from_pretrained`. precision: its weights are cast to it.
    """
    return placed(pretrained(cls, weights.path), precision, device())


def pretrained(cls: Any, path: str, **options: Any) -> Any:
    """Returns `cls.from_pretrained(path, **options)`, a model, tokenizer or processor of transformers.

    Code in the folder is never run: without `trust_remote_code=False`, transformers asks on the terminal whether to run it.
    Raises VlpipeError if it cannot be loaded.
    """
    try:
        return cls.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        why = str(error)
        if "trust_remote_code" in why:
            why = "it needs code of its own, which is not run; only models that transformers itself defines can be used"
        raise VlpipeError(f"{path}: transformers cannot load it as {cls.__name__}: {why}") from error


def device() -> torch.device:
    """Returns the torch device of the current step."""
    import torch

    return torch.device(device_of_step())


def processed(weights: Weights) -> Callable[[Image.Image], Pixels]:
    """Returns the model's own image processor (Pillow backend) as a function: RGB image -> (3, H, W) float32."""
    from transformers import AutoImageProcessor

    processor = pretrained(AutoImageProcessor, weights.path, backend="pil")

    def prepare(image: Image.Image) -> Pixels:
        return np.asarray(processor(image, return_tensors="np")["pixel_values"][0], np.float32)

    return prepare


def decoded(rows: pa.Table, rejects: list[Reject]) -> Iterator[tuple[int, Image.Image]]:
    """Yields (row number, RGB image) of images that can be decoded; appends the others to `rejects`."""
    ids = rows["id"].to_pylist()
    for row, data in enumerate(rows["image"]):
        try:
            yield row, decode(data.as_py())
        except RowFault as fault:
            rejects.append(Reject(ids[row], "fault", fault.why, fault.detail))
