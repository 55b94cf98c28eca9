"""Text-video retrieval by a model that reads text and clip together: CBT's cross-modal part, UniVL's alignment."""

from __future__ import annotations

from collections.abc import Mapping
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
from vlpipe.stages.evaluate.video.ranks import Ints, Scores, figures
from vlpipe.stages.evaluate.video.retrieval import in_errors

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Stream

READ = 256  # rows at a time


@dataclass(frozen=True, kw_only=True)
class PairRetrieval(GatherStage):
    """Emits RESULTS: `r@1`, `r@5`, `r@10` and `medr` of the right clip among those that a text is read together with, over
    all texts; `untrained/...` of new weights of the same sizes; `chance/r@1`; `gain/r@1`: difference to the untrained one
    in standard errors.

    candidates: number of clips that each text is scored with: its own, and others drawn by `seed`; 0: all clips, which
    takes as many forward passes as there are texts times clips. Ties count against the model. model: with the capability
    ScoresPairs; each text and each clip is encoded once. streams: parameters of its makers; rows are clips. All encodings
    are held in memory: the product of windows, or words, and width, in float32, for each row.
    """

    NAME: ClassVar[str] = "evaluate.video.pair_retrieval:PairRetrieval"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    candidates: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1)] = 256  # pairs
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.video.pair_retrieval", id=pa.string(), parent=pa.string(), texts=TEXTS)
        return RESULTS

    def preflight(self) -> list[str]:
        return ["candidates: wanted 0, or at least 2"] if self.candidates == 1 else []

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.video_capabilities import ScoresPairs
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [ScoresPairs])

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.video_capabilities import ScoresPairs
        from vlpipe.stages.common.model import load
        from vlpipe.stages.train.build import build_makers
        from vlpipe.stages.train.recipe import Recipe

        loaded = load(self.model, needs=[ScoresPairs])
        recipe = Recipe(objectives=[], streams=self.streams)
        makers = build_makers(recipe, loaded.model, loaded.tokenizer)
        rows = [row for part in clip_rows(job, makers["video"].COLUMNS, READ) for row in part]
        if not rows:
            raise VlpipeError("evaluate.video.pair_retrieval: there is no row with a usable text")

        def draw() -> np.random.Generator:
            return np.random.default_rng(self.seed)

        text: Any = makers["text"]
        video = makers["video"]
        texts = [one for row in rows for one in row.texts]
        streams = {
            "text": text.collate([text(None, one, draw()) for one in texts]),
            "video": video.on_device(video.collate([video(row, "", draw()) for row in rows])),
        }
        right = np.array([k for k, row in enumerate(rows) for _ in row.texts])
        shown = self._shown(right, len(rows))
        torch.manual_seed(self.seed)
        untrained = type(loaded.model)(**vars(loaded.model.config)).eval().to(loaded.device)
        moved = {name: stream.map(lambda value: value.to(loaded.device)) for name, stream in streams.items()}
        found = {
            prefix: ranks_of(self._scores(model, moved, shown))
            for prefix, model in (("", loaded.model), ("untrained/", untrained))
        }
        results = [row for prefix, own in found.items() for row in figures(prefix, own)]
        hits = [(own <= 1).astype(float) for own in found.values()]
        more = {"chance/r@1": 1 / shown.shape[1], "gain/r@1": in_errors(hits[0] - hits[1], right)}
        results += [{"name": name, "value": value, "num_rows": len(texts)} for name, value in more.items()]
        job.emit(pa.Table.from_pylist(results, RESULTS))

    def _shown(self, right: Ints, num: int) -> Ints:
        """Returns the clips (Q, C) that each text is scored with, its own first."""
        size = min(self.candidates or num, num)
        rng = np.random.default_rng(self.seed)
        others = np.stack([rng.choice(num - 1, size - 1, replace=False, shuffle=False) for _ in right])
        others += others >= right[:, None]  # skips the text's own clip
        return np.concatenate([right[:, None], others], axis=1)

    def _scores(self, model: Any, streams: Mapping[str, Stream], shown: Ints) -> Scores:
        """Returns (Q, C)."""
        import torch

        from vlpipe.models.interface.outputs import Outputs
        from vlpipe.stages.common.model import batch_of

        flat = torch.from_numpy(shown).flatten()
        of_text = torch.arange(len(shown)).repeat_interleave(shown.shape[1])
        with torch.inference_mode():
            given = {
                value: torch.cat(
                    [
                        getattr(Outputs(model, batch_of({name: stream.rows(slice(at, at + READ))})), value)
                        for at in range(0, len(stream), READ)
                    ]
                )
                for name, stream in streams.items()
                for value in model.ENCODINGS.get(name, ())
            }
            out = Outputs(model, batch_of(dict(streams)), given=given, grad=False)
            found = []
            for at in torch.arange(len(flat)).split(self.batch_size):
                pairs = {
                    name: x[at].to(out.batch.same.device) for name, x in (("text", of_text), ("video", flat))
                }
                found.append(out.paired(pairs).pair_score.float().cpu())
        return torch.cat(found).view(shown.shape).numpy()


def ranks_of(scores: Scores) -> Ints:
    """Returns the rank (Q,), from 1, of candidate 0 of each row (Q, C); a tie, or what is no number, comes before it."""
    found: Ints = (~(scores < scores[:, :1])).sum(1)
    return found
