"""Features of windows in their context: the states of a transformer that was trained over them (CBT, UniVL, VideoBERT)."""

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

TOKENS, BLANK = "video_tokens", "[]"
OVERFLOW = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class ContextFeatures(MapStage):
    """Adds the heavy column `context_feats` (see `s3d.features_type`), one entry per window of `column`, and
    `context_weights`, the digest of `model`.

    model: with the capability EncodesWindows. column: of windows; `video_tokens` for a model that reads tokens. A row with
    more windows than the model has positions is encoded in runs of so many. text: read with each run by a model that has
    Fuses; each [] in it is a masked word, and a window's feature is its state and, after it, the mean of those of the masked
    words (VideoBERT, section 4.6). dim: the width of the features, the model's `width`, or twice that with masked words;
    required if an earlier step makes the model. Reject codes: no_window (filtered); not_finite: a state overflows float16.
    """

    NAME: ClassVar[str] = "features.context:ContextFeatures"
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True

    model: Weights
    column: Literal["s3d", "frame_feats", "video_tokens"] = "s3d"
    text: str = ""
    dim: int | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64

    @property
    def READS_HEAVY(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on `column`
        return (self.column,)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "features.context", id=pa.string())
        if self.column != TOKENS:
            need_windows(inp, "features.context", self.column)
        elif TOKENS not in inp.names:
            raise SchemaError(f"features.context reads column {TOKENS!r}, which no earlier step writes")
        width = None if self.model.step else _width(Path(self.model.path))
        known = self.dim or (width * self._times if width else None)
        if known is None:
            raise SchemaError(
                "features.context must know the width of its vectors, and there is no config.json of the model (yet) that "
                "contains it: write `dim: 768` (the `width` of that model) next to `model:`"
            )
        out = with_field(inp, heavy("context_feats", features_type(known)))
        return with_field(out, pa.field("context_weights", pa.string()))

    @property
    def _times(self) -> int:
        """How many vectors of the model's width a feature has."""
        return 1 + (BLANK in self.text.split())

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.video_capabilities import EncodesWindows
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [EncodesWindows])

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.models.interface.capabilities import Fuses
        from vlpipe.models.interface.video_capabilities import EncodesWindows
        from vlpipe.stages.common.model import load

        model = load(self.model, needs=[EncodesWindows, *([Fuses] if self.text else [])])
        dim = int(model.model.config.width) * self._times
        if self.dim not in (None, dim):
            raise VlpipeError(
                f"the model makes features of {dim} values, but the step sets dim: {self.dim}; set dim: {dim}"
            )

        def work(rows: pa.Table) -> Out:
            windows = list(
                read_tokens(rows[TOKENS]) if self.column == TOKENS else read_windows(rows[self.column])
            )
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
        """Returns the features (W, dim) of the windows of each row."""
        import torch

        from vlpipe.models.interface.batch import Stream

        most, dim = most_windows(model.model), int(model.model.config.width) * self._times
        runs = [one.feats[at : at + most] for one in windows for at in range(0, len(one.feats), most)]
        found: list[Any] = []
        for at in range(0, len(runs), self.batch_size):
            part = [torch.from_numpy(run) for run in runs[at : at + self.batch_size]]
            data = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
            mask = torch.arange(data.shape[1]) < torch.tensor([len(run) for run in part])[:, None]
            if self.column == TOKENS:
                streams = {"video": Stream(data[..., 0].long(), mask)}
            else:
                streams = {"video": Stream(data[:, None], mask[:, None])}
            ids, blanks = self._ids(model) if self.text else ([], [])
            if self.text:
                text = torch.tensor([ids] * len(part))
                streams["text"] = Stream(text, torch.ones_like(text, dtype=torch.bool))
            with torch.inference_mode():
                out = model.outputs(**streams)
                states = out.video_tokens
                if blanks:
                    said = out.fused["text"][:, blanks].mean(1, keepdim=True)
                    states = torch.cat([states, said.expand(-1, states.shape[1], -1)], dim=2)
            found += [s[: len(run)].float().cpu().numpy() for s, run in zip(states, part, strict=True)]
        each = iter(found)
        return [
            np.concatenate([next(each) for _ in range(0, len(one.feats), most)])
            if len(one.feats)
            else np.zeros((0, dim), np.float32)
            for one in windows
        ]

    def _ids(self, model: Loaded) -> tuple[list[int], list[int]]:
        """Returns the token ids of `text`, and the places of the masked words."""
        tokenizer = model.tokenizer
        ids, blanks = [tokenizer.start], []
        for word in self.text.split():
            if word == BLANK:
                blanks.append(len(ids))
            ids += [tokenizer.mask] if word == BLANK else tokenizer.ids(word)
        return [*ids, tokenizer.end], blanks


def most_windows(model: Any) -> int:
    """Returns how many windows a model reads at once."""
    config = model.config
    return int(config.max_frames if hasattr(config, "max_frames") else config.max_video_length)


def read_tokens(column: pa.ChunkedArray) -> Iterator[WindowFeats]:
    """Yields the tokens of each row, in order, as features (W, 1). column: lists of structs start_s, end_s, token."""
    for row in column:
        entries = row.as_py() or []
        starts, ends, tokens = ([entry[name] for entry in entries] for name in ("start_s", "end_s", "token"))
        feats = np.array(tokens, np.float32).reshape(-1, 1)
        yield WindowFeats(np.array(starts, np.float32), np.array(ends, np.float32), feats)


def _width(folder: Path) -> int | None:
    """Returns `width` of a model folder's config.json; None without one."""
    path = folder / "config.json"
    value = json.loads(path.read_text(encoding="utf-8")).get("width") if path.is_file() else None
    return int(value) if value else None
