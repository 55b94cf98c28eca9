"""VideoBERT's initial weights: BERT's, and the centroids of the video tokens (Sun et al. 2019, section 4.3).

https://arxiv.org/abs/1904.01766
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.stage import GatherStage, Job

if TYPE_CHECKING:
    from vlpipe.models.systems.text.bert import Bert
    from vlpipe.models.systems.video.videobert import VideoBert


@dataclass(frozen=True, kw_only=True)
class StartVideoBert(GatherStage):
    """Makes a VideoBERT folder for `init` of `Train`, with BERT's tokenizer. Rows: none.

    bert: a BERT folder. tree: of `features.video_tokens`; its tokens without a centroid keep random embeddings. model:
    parameters of `VideoBert`; sizes are those of `bert`. Raises VlpipeError if the centroids are not as wide as BERT, or its
    positions are too few. seed: of what neither of the two has: the embedding of [>] and the matching head.
    """

    NAME: ClassVar[str] = "features.start_videobert:StartVideoBert"
    ROWS_ARE: ClassVar[str] = "none"
    TORCH: ClassVar[bool] = True

    bert: Weights
    tree: File
    model: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models import folder
        from vlpipe.models.systems.video.videobert import VideoBert
        from vlpipe.models.tokenizer import Tokenizer
        from vlpipe.stages.features.video_tree import Tree

        bert, tokenizer = folder.load(self.bert.path, use="bert:Bert"), Tokenizer.load(self.bert.path)
        centroids = Tree.load(Path(self.tree.path)).centroids[-1]
        names = ("width", "layers", "heads", "norm_eps", "init_std")
        sizes = {name: getattr(bert.config, name) for name in names}
        torch.manual_seed(self.seed)
        model = VideoBert.from_spec({**sizes, "num_codes": len(centroids), **self.model}, tokenizer)
        start(model, bert, centroids)
        folder.save(model, job.artifacts)
        tokenizer.save(Path(job.artifacts) / "tokenizer")


def start(model: VideoBert, bert: Bert, centroids: npt.NDArray[np.float32]) -> None:
    """Sets the weights of `model` to those of `bert`, and its embeddings of video tokens to `centroids` (C, D)."""
    import torch

    own, given = model.state_dict(), bert.state_dict()
    words, places = "encoder.embed.words.weight", "encoder.embed.positions.weight"
    if centroids.shape != (model.config.num_codes, own[words].shape[1]):
        raise VlpipeError(
            f"features.start_videobert: wanted centroids of shape {(model.config.num_codes, own[words].shape[1])} "
            f"(video tokens, width of BERT), got {centroids.shape}"
        )
    if len(given[places]) < len(own[places]):
        raise VlpipeError(
            f"features.start_videobert: BERT has {len(given[places])} positions, but max_text_length and "
            f"max_video_length need {len(own[places])}"
        )
    num_words = min(len(given[words]), model.config.vocab_size)
    used = torch.from_numpy(np.flatnonzero(~np.isnan(centroids).any(axis=1)))
    with torch.no_grad():
        for name, value in given.items():
            if name in own and own[name].shape == value.shape and not name.startswith("match_head."):
                own[name].copy_(value)
        own[places].copy_(given[places][: len(own[places])])
        own[words][:num_words] = given[words][:num_words]
        own[words][model.config.vocab_size + 1 + used] = torch.from_numpy(centroids)[used]
        own["word_head.decoder.bias"][:num_words] = given["word_head.decoder.bias"][:num_words]
