"""Text-video retrieval: finds the clip of each text among all clips (YouCook2, MSR-VTT), and among those of its video.

The protocol of HowTo100M, MIL-NCE and UniVL: recall at 1, 5 and 10, and the median rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.evaluate.video.clip_rows import clip_rows
from vlpipe.stages.evaluate.video.ranks import Ints, Scores, figures, ranks
from vlpipe.stages.loading.rows import Row, int64_id

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Stream


@dataclass(frozen=True, kw_only=True)
class VideoRetrieval(GatherStage):
    """Emits RESULTS: `r@1`, `r@5`, `r@10` as fractions from 0 to 1 and `medr`, the median rank from 1, over all texts.

    Ties count against the model: a clip that scores as high as the right one comes before it. `within/...`: the same
    among the clips of the same video; texts of videos with one clip are left out. `untrained/...`,
    `within/untrained/...`: of new weights of the same sizes. `gain/r@10` and `within/gain/r@1`: differences to the
    untrained ones in standard errors.

    model: any with the capability ScoresNarration. streams: parameters of its makers, as in a recipe; rows are clips.
    average: each window of a clip is embedded by itself, and the clip's embedding is the mean of these, as MIL-NCE does
    with 4 windows of a clip; False: the model reads all windows of a clip at once. A text without a word that the model
    knows is a query like any other.
    """

    NAME: ClassVar[str] = "evaluate.video.retrieval:VideoRetrieval"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    average: bool = False
    batch_size: Annotated[int, Field(ge=1)] = 64
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.video.retrieval", id=pa.string(), parent=pa.string(), texts=TEXTS)
        return RESULTS

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.video_capabilities import ScoresNarration
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [ScoresNarration])

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.video_capabilities import ScoresNarration
        from vlpipe.stages.common.model import load

        loaded = load(self.model, needs=[ScoresNarration])
        makers = self._makers(loaded.model, loaded.tokenizer)
        torch.manual_seed(self.seed)
        untrained = type(loaded.model)(**vars(loaded.model.config)).eval().to(loaded.device)
        models = {"": loaded.model, "untrained/": untrained}
        clips: dict[str, list[Scores]] = {name: [] for name in models}
        texts: dict[str, list[Scores]] = {name: [] for name in models}
        owners, videos, at = [], [], 0
        for part in clip_rows(job, makers["video"].COLUMNS, self.batch_size):
            several = [one for row in part for one in row.texts]
            for name, model in models.items():
                clips[name].append(self._clip_feats(model, makers, part, loaded))
                texts[name].append(self._text_feats(model, makers, several, loaded))
            owners += [at + k for k, row in enumerate(part) for _ in row.texts]
            videos += [int64_id(row.columns["parent"]) for row in part]
            at += len(part)
        if not owners:
            raise VlpipeError("evaluate.video.retrieval: there is no row with a usable text")
        right, parents = np.array(owners), np.array(videos)
        rows = self._figures(
            {n: (np.concatenate(texts[n]), np.concatenate(clips[n])) for n in models}, right, parents
        )
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _figures(
        self, feats: Mapping[str, tuple[Scores, Scores]], right: Ints, parents: Ints
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        nums = dict(zip(*np.unique(parents, return_counts=True), strict=True))
        chosen = np.array([nums[parents[k]] > 1 for k in right])
        for within, kept, k in (("", np.ones(len(right), bool), 10), ("within/", chosen, 1)):
            if not kept.any():
                continue
            groups = (parents[right[kept]], parents) if within else None
            found = {n: ranks(t[kept], c, right[kept], groups) for n, (t, c) in feats.items()}
            for name, own in found.items():
                rows += figures(within + name, own)
            hits = [(one <= k).astype(float) for one in found.values()]
            rows.append(
                {
                    "name": f"{within}gain/r@{k}",
                    "value": in_errors(hits[0] - hits[1], right[kept]),
                    "num_rows": int(kept.sum()),
                }
            )
        return rows

    def _makers(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        from vlpipe.stages.train.build import build_makers
        from vlpipe.stages.train.recipe import Recipe

        return build_makers(Recipe(objectives=[], streams=self.streams), model, tokenizer)

    def _clip_feats(self, model: Any, makers: Mapping[str, Any], rows: Sequence[Row], loaded: Any) -> Scores:
        """Returns (rows, E)."""
        import torch

        maker = makers["video"]
        stream = maker.on_device(
            maker.collate([maker(row, "", np.random.default_rng(self.seed)) for row in rows])
        )
        if not self.average or stream.mask is None:
            return _outputs(model, loaded, video=stream).clip_feat[:, 0].float().cpu().numpy()
        counts = stream.mask[:, 0].sum(1)
        each = type(stream)(stream.data[:, 0][stream.mask[:, 0]][:, None, None])
        feats = _outputs(model, loaded, video=each).clip_feat[:, 0].float().cpu()
        owner = torch.arange(len(rows)).repeat_interleave(counts)
        total = torch.zeros(len(rows), feats.shape[1]).index_add(0, owner, feats)
        return (total / counts[:, None]).numpy()

    def _text_feats(self, model: Any, makers: Mapping[str, Any], texts: Sequence[str], loaded: Any) -> Scores:
        """Returns (texts, E)."""
        maker = makers["text"]
        stream = maker.collate([maker(None, one, np.random.default_rng(self.seed)) for one in texts])
        found: Scores = _outputs(model, loaded, text=stream).narration_feat[:, 0, 0].float().cpu().numpy()
        return found


def _outputs(model: Any, loaded: Any, **streams: Stream) -> Any:
    from vlpipe.models.interface.outputs import Outputs
    from vlpipe.stages.common.model import batch_of

    moved = {name: stream.map(lambda value: value.to(loaded.device)) for name, stream in streams.items()}
    return Outputs(model, batch_of(moved), grad=False)


def in_errors(differences: Scores, of: Ints) -> float:
    """Returns the mean of differences in units of its standard error, those of the same `of` (a clip) being added up first;
    0 if all are 0."""
    _, places = np.unique(of, return_inverse=True)
    values = np.bincount(places, weights=differences)
    error = values.std(ddof=1) * len(values) ** 0.5 if len(values) > 1 else 0.0
    return float(values.sum() / error) if error else 0.0
