"""Vectors of windows and texts by a model that scores narration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.files import Weights
from vlpipe.stages.loading.rows import Row

Vectors = npt.NDArray[np.float32]
BATCH = 256


@dataclass(frozen=True)
class Encoder:
    """loaded: model, tokenizer and device. makers: of its streams `video` and `text`."""

    loaded: Any
    makers: Mapping[str, Any]

    @classmethod
    def load(cls, weights: Weights, streams: Mapping[str, Any]) -> Encoder:
        from vlpipe.models.interface.video_capabilities import ScoresNarration
        from vlpipe.stages.common.model import load
        from vlpipe.stages.train.build import build_makers
        from vlpipe.stages.train.recipe import Recipe

        loaded = load(weights, needs=[ScoresNarration])
        recipe = Recipe(objectives=[], streams=dict(streams))
        return cls(loaded, build_makers(recipe, loaded.model, loaded.tokenizer))

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Returns (N, E)."""
        maker, rng = self.makers["text"], np.random.default_rng(0)
        stream = maker.collate([maker(None, one, rng) for one in texts])
        found: Vectors = self._outputs(text=stream).narration_feat[:, 0, 0].float().cpu().numpy()
        return found

    def windows(self, value: Any, row_id: str) -> tuple[Vectors, npt.NDArray[np.float64]]:
        """Returns the vectors (T, E) of a row's windows, each as a clip of its own, and their middles (T,) in seconds.

        value: of the column of windows, an Arrow scalar.
        """
        maker, rng = self.makers["video"], np.random.default_rng(0)
        (column,) = maker.COLUMNS
        entries = value.values
        rows = [Row(row_id, 0, [], {column: _single(entries, k)}) for k in range(len(entries or ()))]
        feats = [
            self._outputs(video=maker.collate([maker(row, "", rng) for row in rows[at : at + BATCH]]))
            .clip_feat[:, 0]
            .float()
            .cpu()
            .numpy()
            for at in range(0, len(rows), BATCH)
        ]
        if not rows:
            return np.zeros((0, 0), np.float32), np.zeros(0)
        start_s, end_s = (entries.field(n).to_numpy().astype(np.float64) for n in ("start_s", "end_s"))
        return np.concatenate(feats), (start_s + end_s) / 2

    def _outputs(self, **streams: Any) -> Any:
        from vlpipe.models.interface.outputs import Outputs
        from vlpipe.stages.common.model import batch_of

        device = self.loaded.device
        moved = {name: stream.map(lambda value: value.to(device)) for name, stream in streams.items()}
        return Outputs(self.loaded.model, batch_of(moved), grad=False)


def _single(entries: Any, k: int) -> Any:
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), entries.slice(k, 1))[0]
