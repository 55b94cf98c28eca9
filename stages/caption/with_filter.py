"""CapFilt by one model: it captions the images and scores all texts, and encodes each image once for both.

BLIP finetunes captioner and filter apart, which is better (Li et al., 2022, Table 4, https://arxiv.org/abs/2201.12086);
they then have image encoders of their own, and need `caption.generate` and `filter.itm`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import Out, Reject, with_field
from vlpipe.pipeline.stage import Stage, Work
from vlpipe.stages.caption.generate import Caption
from vlpipe.stages.common.batches import encode_images, made_up, read_images, with_texts, without
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.rule import scored
from vlpipe.stages.common.scores import not_finite
from vlpipe.stages.filter.itm import ITM, is_judged, judge, match_logits, threshold_problems, unscored
from vlpipe.stages.inference.ahead import Ahead, Working

if TYPE_CHECKING:
    from vlpipe.models.generation.steps import Steps
    from vlpipe.stages.common.model import Loaded


@dataclass(frozen=True, kw_only=True)
class CaptionAndFilter(Caption):
    """Appends captions as `caption.generate`, then scores and decides as `filter.itm`: the same rows as by these two steps.

    Parameters are those of both. Memory: the encodings of `batch_size` images.
    """

    NAME: ClassVar[str] = "caption.with_filter:CaptionAndFilter"
    VERSION: ClassVar[int] = 1

    threshold: float = 0.5
    sources: tuple[str, ...] = ("web", "synth")
    max_text_length: int = 30  # tokens that the filter reads, including [CLS] and [SEP]; as in BLIP

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(super().schema(inp), scored("texts", TEXTS, ITM))

    def preflight(self) -> list[str]:
        problems = super().preflight() + threshold_problems(self.threshold)
        if self.row_prompts:
            problems.append("row_prompts: use caption.generate and filter.itm, one after the other")
        return problems

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import Generates, Matches
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [Generates, Matches])

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.models.generation.generate import check

        model, steps = self._loaded()
        check(model.model, self.min_length, self.max_length, model.tokenizer.ids(self.prompt))
        yield Working(partial(self._both, model, steps), self.decode_workers, model.is_on_gpu)

    @contextmanager
    def trials(self) -> Iterator[Callable[[int], None]]:
        with super().trials() as caption:
            model, _ = self._loaded()

            def compute(size: int) -> None:
                caption(size)
                images = model.encode_images(made_up(size, model.image_size))
                pairs = ((k, tokens, "word " * self.max_text_length) for k, tokens in enumerate(images))
                assert len(list(match_logits(model, pairs, size, self.max_text_length))) == size

            yield compute

    def _loaded(self) -> tuple[Loaded, Steps]:
        from vlpipe.models.generation.steps import Decoding, Steps
        from vlpipe.models.interface.capabilities import Generates, Matches
        from vlpipe.stages.common.model import load

        model = load(self.model, self.max_text_length, needs=[Generates, Matches], precision=self.precision)
        return model, Steps(model.model, Decoding.on(model.device, self.compile))

    def _both(self, model: Loaded, steps: Steps, table: pa.Table, ahead: Ahead) -> Out:
        rejects: list[Reject] = []
        ids = table["id"].to_pylist()
        texts: list[list[dict[str, Any]]] = [[dict(t) for t in ts or ()] for ts in table["texts"].to_pylist()]
        pixels = read_images(table, model.image_size, rejects, ahead)
        images = encode_images(pixels, model.encode_images, self.batch_size, ahead)
        while encoded := list(islice(images, self.batch_size)):
            self._append(model, steps, encoded, ids, texts)
            pairs = (
                (entry, tokens, entry["text"])
                for row, tokens in encoded
                for entry in texts[row]
                if is_judged(entry, self.sources)
            )
            judge(model, pairs, self.batch_size, self.max_text_length, self.threshold)
        rejects += not_finite(table["id"], unscored(texts, self.sources))
        return Out(without(with_texts(table, texts), rejects), rejects)
