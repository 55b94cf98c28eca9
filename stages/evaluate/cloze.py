"""Zero-shot cloze: predicts masked words of a text from the rest of it and from the video (VideoBERT, section 4.5).

The same words are predicted once more with another row's video, without any, and by an untrained network, so that the
figures say how much the model uses what it sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import is_heavy, need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.loading.rows import Row, usable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vlpipe.models.interface.batch import Stream
    from vlpipe.stages.loading.makers.base import Maker

TOP = (1, 5)
PAIRED, SHUFFLED, ALONE, UNTRAINED = "paired", "shuffled", "alone", "untrained"


@dataclass(frozen=True, slots=True)
class Blank:
    """A text with one word masked. row: of the batch. at: positions of its tokens; wanted: their ids."""

    row: int
    ids: list[int]
    at: list[int]
    wanted: list[int]


@dataclass(frozen=True, kw_only=True)
class Cloze(GatherStage):
    """Emits RESULTS: `SETTING/top1`, `SETTING/top5` over masked words, as fractions from 0 to 1, and differences.

    Each word of each usable text is masked by itself, or those of `words` only; it counts as found if all of its tokens are
    among the top k. Settings: `paired` with the row's own other streams; `shuffled` with those of the row halfway round the
    dataset; `alone` without them, if the model can; `untrained`: paired, with new weights of the same sizes.
    `gain/shuffled/top1` is paired minus shuffled in standard errors of the paired difference (per text, as words of a text
    are not independent); so are `gain/alone/...` and `gain/untrained/...`.

    model: any with the capability FillsWords. words: masked words, in lower case; empty for all. streams: parameters of its
    makers, as in a recipe. alone: False for models that need all of their streams.
    """

    NAME: ClassVar[str] = "evaluate.cloze:Cloze"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    words: list[str] = field(default_factory=list)
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    alone: bool = True
    batch_size: Annotated[int, Field(ge=1)] = 64
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.cloze", id=pa.string(), texts=TEXTS)
        return RESULTS

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.capabilities import FillsWords
        from vlpipe.stages.common.model import load

        loaded = load(self.model, needs=[FillsWords])
        makers = self._makers(loaded.model, loaded.tokenizer)
        others = {name: maker for name, maker in makers.items() if name != "text"}
        columns = list(dict.fromkeys(c for maker in others.values() for c in maker.COLUMNS))
        rows = list(_rows(job, columns))
        if not rows:
            raise VlpipeError("evaluate.cloze: there is no row with a usable text")
        torch.manual_seed(self.seed)
        untrained = type(loaded.model)(**vars(loaded.model.config)).eval().to(loaded.device)
        settings: dict[str, tuple[Any, int, Mapping[str, Maker]]] = {
            PAIRED: (loaded.model, 0, others),
            SHUFFLED: (loaded.model, max(1, len(rows) // 2), others),
            **({ALONE: (loaded.model, 0, {})} if self.alone else {}),
            UNTRAINED: (untrained, 0, others),
        }
        hits: dict[str, list[Any]] = {}
        for name, (model, shift, used) in settings.items():
            hits[name] = [
                hit
                for start in range(0, len(rows), self.batch_size)
                for hit in self._hits(model, makers["text"], used, rows, start, shift, loaded.device)
            ]
        if not any(len(one) for one in hits[PAIRED]):
            raise VlpipeError(
                "evaluate.cloze: no text has a word to mask" + (f" of {self.words}" if self.words else "")
            )
        job.emit(pa.Table.from_pylist(figures(hits), RESULTS))

    def _makers(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        from vlpipe.stages.train.build import build_makers
        from vlpipe.stages.train.recipe import Recipe

        return build_makers(Recipe(objectives=[], streams=self.streams), model, tokenizer)

    def _hits(
        self,
        model: Any,
        text: Any,
        others: Mapping[str, Maker],
        rows: Sequence[Row],
        start: int,
        shift: int,
        device: torch.device,
    ) -> list[Any]:
        """Returns for each text of a batch of rows an array (words, len(TOP)) bool: whether a word is among the top k."""
        import torch

        from vlpipe.models.interface.outputs import Outputs
        from vlpipe.stages.common.model import batch_of

        part = rows[start : start + self.batch_size]
        texts = [(k, one) for k, row in enumerate(part) for one in row.texts]
        blanks = [
            (number, blank) for number, (k, one) in enumerate(texts) for blank in self._blanks(text, k, one)
        ]
        found: list[list[list[bool]]] = [[] for _ in texts]
        if not blanks:
            return [np.zeros((0, len(TOP)), np.bool_) for _ in texts]
        streams = {"text": text.collate([{"data": np.array(blank.ids, np.int64)} for _, blank in blanks])}
        index = torch.tensor([blank.row for _, blank in blanks])
        streams |= {
            name: s.rows(index) for name, s in self._other_streams(others, rows, start, shift).items()
        }
        with torch.inference_mode():
            batch = batch_of(
                {name: stream.map(lambda value: value.to(device)) for name, stream in streams.items()}
            )
            out = Outputs(model, batch, grad=False)
            hidden = out.word_hidden
            for at, (number, blank) in enumerate(blanks):
                found[number].append(_found(model.predict_words(hidden[at, blank.at]), blank.wanted))
        return [np.array(one, np.bool_).reshape(-1, len(TOP)) for one in found]

    def _other_streams(
        self, others: Mapping[str, Maker], rows: Sequence[Row], start: int, shift: int
    ) -> dict[str, Stream]:
        size = min(self.batch_size, len(rows) - start)
        chosen = [(start + k + shift) % len(rows) for k in range(size)]
        return {
            name: maker.on_device(
                maker.collate([maker(rows[k], "", np.random.default_rng((self.seed, k))) for k in chosen])
            )
            for name, maker in others.items()
        }

    def _blanks(self, maker: Any, row: int, text: str) -> Iterator[Blank]:
        item = maker(None, text, np.random.default_rng(0))
        ids, words = item["data"].tolist(), item["words"]
        for word in np.unique(words[words >= 0]):
            at = np.flatnonzero(words == word).tolist()
            wanted = [ids[k] for k in at]
            if not self.words or maker.tokenizer.decode(wanted) in self.words:
                masked = [maker.tokenizer.mask if k in at else one for k, one in enumerate(ids)]
                yield Blank(row, masked, at, wanted)


def _rows(job: Job, columns: Sequence[str]) -> Iterator[Row]:
    """Yields rows with usable texts, and the columns that makers read."""
    for data in job.inputs:
        stored = [name for name in columns if is_heavy(data.schema.field(name))]
        light = [name for name in columns if name not in stored]
        for table in data.batches(["id", "texts", *light], stored):
            values = {
                name: list(table[name]) if pa.types.is_nested(table[name].type) else table[name].to_pylist()
                for name in columns
            }
            for k, texts in enumerate(usable(table["texts"])):
                if texts:
                    yield Row(table["id"][k].as_py(), k, texts, {name: values[name][k] for name in columns})


def _found(logits: Tensor, wanted: Sequence[int]) -> list[bool]:
    """Returns for each k of TOP whether all `wanted` ids are among the k largest of their logits (N, V)."""
    own = logits.gather(1, logits.new_tensor(wanted).long()[:, None])
    rank = (~(logits < own)).sum(1) - 1  # ties count against the word, and what is no number
    return [bool((rank < k).all()) for k in TOP]


def figures(hits: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns RESULTS rows. hits: setting -> for each text an array (words, len(TOP)) bool."""
    found = []
    num = sum(len(one) for one in hits[PAIRED])
    for name, texts in hits.items():
        share = np.concatenate(texts).mean(axis=0)
        found += [
            {"name": f"{name}/top{k}", "value": float(v), "num_rows": num}
            for k, v in zip(TOP, share, strict=True)
        ]
    for name in [name for name in hits if name != PAIRED]:
        for at, k in enumerate(TOP):
            differences = [
                float((own[:, at].astype(float) - other[:, at]).sum())
                for own, other in zip(hits[PAIRED], hits[name], strict=True)
            ]
            found.append({"name": f"gain/{name}/top{k}", "value": in_errors(differences), "num_rows": num})
    return found


def in_errors(differences: Sequence[float]) -> float:
    """Returns the sum of independent differences in units of its standard error; 0 if all are 0."""
    values = np.array(differences)
    error = values.std(ddof=1) * len(values) ** 0.5 if len(values) > 1 else 0.0
    return float(values.sum() / error) if error else 0.0
