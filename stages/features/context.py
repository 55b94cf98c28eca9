"""Features of windows in their context: the states of a transformer that was trained over them (CBT, UniVL)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, heavy, need, with_field
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.stages.common.batches import batch_size_problems, without
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.features.s3d import features_type
from vlpipe.stages.features.windows import Array, WindowFeats, need_windows, read_windows

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded

OVERFLOW = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class ContextFeatures(MapStage):
    """Adds the heavy column `context_feats` (see `s3d.features_type`), one entry per window of `column`, and
    `context_weights`, the digest of `model`.

    model: with the capability EncodesWindows. A row with more windows than the model has positions is encoded in runs of so
    many. dim: the model's `width`; required if an earlier step makes the model. Reject codes: no_window (filtered);
    not_finite, if a state overflows float16.
    """

    NAME: ClassVar[str] = "features.context:ContextFeatures"
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True

    model: Weights
    column: Literal["s3d", "frame_feats"] = "s3d"
    dim: int | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64

    @property
    def READS_HEAVY(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on `column`
        return (self.column,)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "features.context", id=pa.string())
        need_windows(inp, "features.context", self.column)
        known = self.dim or (None if self.model.step else _width(Path(self.model.path)))
        if known is None:
            raise SchemaError(
                "features.context must know the width of its vectors, and there is no config.json of the model (yet) that "
                "contains it: write `dim: 768` (the `width` of that model) next to `model:`"
            )
        out = with_field(inp, heavy("context_feats", features_type(known)))
        return with_field(out, pa.field("context_weights", pa.string()))

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.video_capabilities import EncodesWindows
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [EncodesWindows])

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.models.interface.video_capabilities import EncodesWindows
        from vlpipe.stages.common.model import load

        model = load(self.model, needs=[EncodesWindows])
        dim = int(model.model.config.width)
        if self.dim not in (None, dim):
            raise VlpipeError(f"the model has width {dim}, but the step sets dim: {self.dim}; set dim: {dim}")

        def work(rows: pa.Table) -> Out:
            windows = list(read_windows(rows[self.column]))
            states = self._states(windows, model)
            rejects, entries = [], []
            for id_, one, found in zip(rows["id"].to_pylist(), windows, states, strict=True):
                if not len(found):
                    rejects.append(Reject(id_, "filtered", "no_window", f"the row has no {self.column}"))
                elif not (np.abs(found) <= OVERFLOW).all():
                    rejects.append(Reject(id_, "fault", "not_finite", "a state overflows float16"))
                times = zip(one.start_s.tolist(), one.end_s.tolist(), found.astype(np.float16), strict=True)
                entries.append([{"start_s": s, "end_s": e, "feat": f} for s, e, f in times])
            columns = {
                "context_feats": pa.array(entries, features_type(dim)),
                "context_weights": pa.array([self.model.digest] * rows.num_rows, pa.string()),
            }
            return Out(without(with_columns(rows, **columns), rejects), rejects)

        yield work

    def _states(self, windows: list[WindowFeats], model: Loaded) -> list[Array]:
        """Returns the states (W, width) of the windows of each row."""
        import torch

        from vlpipe.models.interface.batch import Stream

        most = int(model.model.config.max_frames)
        runs = [one.feats[at : at + most] for one in windows for at in range(0, len(one.feats), most)]
        found: list[Any] = []
        for at in range(0, len(runs), self.batch_size):
            part = [torch.from_numpy(run) for run in runs[at : at + self.batch_size]]
            data = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
            mask = torch.arange(data.shape[1]) < torch.tensor([len(run) for run in part])[:, None]
            with torch.inference_mode():
                states = model.outputs(video=Stream(data[:, None], mask[:, None])).video_tokens
            found += [s[: len(run)].float().cpu().numpy() for s, run in zip(states, part, strict=True)]
        each = iter(found)
        width = int(model.model.config.width)
        return [
            np.concatenate([next(each) for _ in range(0, len(one.feats), most)])
            if len(one.feats)
            else np.zeros((0, width), np.float32)
            for one in windows
        ]


def _width(folder: Path) -> int | None:
    """Returns `width` of a model folder's config.json; None without one."""
    path = folder / "config.json"
    value = json.loads(path.read_text(encoding="utf-8")).get("width") if path.is_file() else None
    return int(value) if value else None
