"""Zero-shot action classification: which verb and which object a clip shows, by the words that a model puts into a template.

Sun et al. 2019 (VideoBERT), https://arxiv.org/abs/1904.01766, section 4.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.evaluate.cloze import in_errors
from vlpipe.stages.evaluate.video.clip_rows import clip_rows
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    from torch import Tensor

Scores = npt.NDArray[np.float32]
TOP = (1, 5)
BLANK = "[]"
PAIRED, SHUFFLED, ALONE = "paired", "shuffled", "alone"


@dataclass(frozen=True, kw_only=True)
class TemplateWords(GatherStage):
    """Emits RESULTS: `SLOT/paired/top1`, `top5`: the share of clips of which a true word is among the top k of the slot's
    words; `SLOT/shuffled/...` with the video halfway round the dataset; `SLOT/alone/...` without one, the prior that the
    model has from texts; `SLOT/common/top1`, of the commonest word; `SLOT/gain/shuffled`, `SLOT/gain/alone`: differences of
    top 1 in standard errors.

    template: a text with [] for each slot, such as VideoBERT's "now let me show you how to [] the []". slots: name -> words,
    in the order of the blanks. The true words of a clip are those of the slot that its texts have; a clip without
    any is not asked. A word of several tokens has as many masks in its blank, other blanks one each, and the mean of its
    tokens' log probabilities. model: with the capability FillsWords. streams: parameters of its makers, as in a recipe.
    """

    NAME: ClassVar[str] = "evaluate.video.template:TemplateWords"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    template: str
    slots: dict[str, list[str]]
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=1)] = 64
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.video.template", id=pa.string(), parent=pa.string(), texts=TEXTS)
        return RESULTS

    def preflight(self) -> list[str]:
        problems = []
        if self.template.split().count(BLANK) != len(self.slots) or not self.slots:
            problems.append(
                f"template: wanted {BLANK} as a word for each of the slots {', '.join(self.slots)}, got {self.template!r}"
            )
        problems += [
            f"slots.{name}: wanted at least 2 different words of one word each, got {words}"
            for name, words in self.slots.items()
            if len(set(words)) < 2 or len(set(words)) < len(words) or any(len(w.split()) != 1 for w in words)
        ]
        return problems

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import FillsWords
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [FillsWords])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import FillsWords
        from vlpipe.stages.common.model import load
        from vlpipe.stages.train.build import build_makers
        from vlpipe.stages.train.recipe import Recipe

        loaded = load(self.model, needs=[FillsWords])
        makers = build_makers(Recipe(objectives=[], streams=self.streams), loaded.model, loaded.tokenizer)
        others = {name: maker for name, maker in makers.items() if name != "text"}
        columns = list(dict.fromkeys(c for maker in others.values() for c in maker.COLUMNS))
        rows = [row for part in clip_rows(job, columns, self.batch_size) for row in part]
        if len(rows) < 2:
            raise VlpipeError(
                f"evaluate.video.template: wanted at least 2 rows with usable texts, got {len(rows)}"
            )
        scores = {
            PAIRED: self._scores(loaded, makers["text"], others, rows),
            SHUFFLED: self._scores(
                loaded, makers["text"], others, rows[len(rows) // 2 :] + rows[: len(rows) // 2]
            ),
            ALONE: self._scores(loaded, makers["text"], {}, rows),
        }
        found = []
        for slot, words in self.slots.items():
            true = truth(rows, words)
            if not true.any():
                raise VlpipeError(f"evaluate.video.template: no text has a word of slot {slot}")
            found += figures(slot, {name: one[slot] for name, one in scores.items()}, true)
        job.emit(pa.Table.from_pylist(found, RESULTS))

    def _scores(
        self, loaded: Any, text: Any, others: Mapping[str, Any], rows: Sequence[Row]
    ) -> dict[str, Scores]:
        """Returns slot -> (rows, words), mean log probabilities."""
        found: dict[str, list[Scores]] = {slot: [] for slot in self.slots}
        for at in range(0, len(rows), self.batch_size):
            part = rows[at : at + self.batch_size]
            streams = {
                name: maker.on_device(
                    maker.collate(
                        [maker(row, "", np.random.default_rng((self.seed, k))) for k, row in enumerate(part)]
                    )
                )
                for name, maker in others.items()
            }
            for slot in self.slots:
                found[slot].append(self._of_slot(loaded, text, streams, slot, len(part)))
        return {slot: np.concatenate(some) for slot, some in found.items()}

    def _of_slot(self, loaded: Any, text: Any, streams: Mapping[str, Any], slot: str, num: int) -> Scores:
        import torch

        tokenizer = loaded.tokenizer
        ids = {word: tokenizer.ids(word) for word in self.slots[slot]}
        found = np.zeros((num, len(ids)), np.float32)
        for length in sorted({len(some) for some in ids.values()}):
            tokens, at = self._masked(tokenizer, slot, length)
            data = torch.tensor([tokens] * num)
            with torch.inference_mode():
                out = loaded.outputs(text=text.collate([{"data": row} for row in data.numpy()]), **streams)
                logits: Tensor = loaded.model.predict_words(out.word_hidden[:, at : at + length]).float()
            logprobs = logits.log_softmax(-1).cpu()
            for k, some in enumerate(ids.values()):
                if len(some) == length:
                    found[:, k] = logprobs[:, torch.arange(length), some].mean(1).numpy()
        return found

    def _masked(self, tokenizer: Any, slot: str, length: int) -> tuple[list[int], int]:
        """Returns the template with `length` masks in the blank of `slot` and one in each other, and where those begin."""
        names = iter(self.slots)
        tokens, begins = [tokenizer.start], 0
        for word in self.template.split():
            name = next(names) if word == BLANK else ""
            if name == slot:
                begins = len(tokens)
            tokens += tokenizer.ids(word) if not name else [tokenizer.mask] * (length if name == slot else 1)
        return [*tokens, tokenizer.end], begins


def truth(rows: Sequence[Row], words: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Returns which words each row's texts have, (rows, words)."""
    said = [{word for text in row.texts for word in text.casefold().split()} for row in rows]
    return np.array([[word in own for word in words] for own in said], np.bool_)


def figures(slot: str, scores: Mapping[str, Scores], true: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Returns RESULTS rows. scores: setting -> (rows, words); true: as `truth`. A tie comes before the true word."""
    asked = true.any(1)
    wanted, num = true[asked], int(asked.sum())
    values: dict[str, float] = {}
    hits: dict[str, npt.NDArray[np.bool_]] = {}
    for name, given in scores.items():
        own = given[asked]
        best = np.where(wanted, own, -np.inf).max(1, keepdims=True)
        rank = (~wanted & ~(own < best)).sum(1)  # wrong words that are at least as likely, or not a number
        for k in TOP:
            values[f"{name}/top{k}"] = float((rank < k).mean())
        hits[name] = rank < 1
    commonest = Counter(np.nonzero(wanted)[1].tolist()).most_common(1)[0][0]
    values["common/top1"] = float(wanted[:, commonest].mean())
    for name in [name for name in hits if name != PAIRED]:
        values[f"gain/{name}"] = in_errors((hits[PAIRED].astype(float) - hits[name]).tolist())
    return [{"name": f"{slot}/{name}", "value": value, "num_rows": num} for name, value in values.items()]
