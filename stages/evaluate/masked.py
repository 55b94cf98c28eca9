"""Measures whether a model that predicts masked words or regions uses its other input, by giving it a wrong one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import RESULTS

if TYPE_CHECKING:
    from torch import Tensor

    from vlpipe.models.interface.batch import Batch
    from vlpipe.models.interface.outputs import Outputs
    from vlpipe.models.tokenizer import Tokenizer

Found = Iterator[tuple[str, "Tensor", "Tensor"]]  # name of a figure, predicted ids (N,), true ids (N,)
PARTNERS = ("true", "shuffled")


@dataclass(frozen=True, kw_only=True)
class MaskedAccuracy(GatherStage):
    """Emits RESULTS, fractions from 0 to 1: `NAME/true`, `NAME/shuffled` and `NAME/prior`.

    true: accuracy on masked items when the model sees the other streams of the sample. shuffled: when it sees those of
    another sample, the next of its batch. prior: share of the commonest of the true answers. num_rows: masked items.
    NAME is `text` for all masked words, `text/GROUP` for those of a group in `words`, such as {colour: [red, green]}, and
    `regions/obj` and `regions/attr` for the detector's classes of masked regions.

    corrupt: stream -> corruptors that mask it, while the other streams stay whole, such as {text: ["mask_text:MaskText"]}.
    streams: parameters of makers, as in `train.train`. Samples that do not fill a last batch are left out.
    """

    NAME: ClassVar[str] = "evaluate.masked:MaskedAccuracy"
    ORDERED: ClassVar[frozenset[str]] = frozenset({"corrupt", "words"})
    VERSION: ClassVar[int] = 2  # 2: large JPEGs are decoded smaller
    ROWS_ARE: ClassVar[str] = "figures"
    PARTNERS: ClassVar[tuple[str, ...]] = PARTNERS
    TORCH: ClassVar[bool] = True

    model: Weights
    corrupt: dict[str, list[str | dict[str, Any]]]
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=2)] = 64
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.masked", id=pa.string())
        return RESULTS

    def preflight(self) -> list[str]:
        return [] if self.corrupt else ["corrupt: wanted a stream and its corruptors, got none"]

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.stages.common.model import load
        from vlpipe.stages.held_out.batches import held_out_batches

        loaded = load(self.model)
        reads = loaded.model.streams()
        if unknown := [name for name in self.corrupt if name not in reads]:
            raise VlpipeError(
                f"corrupt: the model reads no stream {unknown[0]!r}; it reads {', '.join(reads)}"
            )
        groups = {name: ids_of(words, loaded.tokenizer) for name, words in self.words.items()}
        tally = Tally()
        made = held_out_batches(
            job,
            loaded,
            "evaluate.masked",
            batch_size=self.batch_size,
            streams=self.streams,
            views=self.corrupt,
            seed=self.seed,
        )
        with made as batches, torch.no_grad():
            for batch in batches:
                for stream in self.corrupt:
                    for partner, out in self.seen(loaded.model, batch, stream):
                        for name, guess, truth in predictions(out, stream, groups):
                            tally.add(name, partner, guess, truth)
        job.emit(pa.Table.from_pylist(list(tally.results(self.PARTNERS)), RESULTS))

    def seen(self, model: Any, batch: Batch, stream: str) -> Iterator[tuple[str, Outputs]]:
        """Yields (partner, outputs) of the view in which `stream` is masked, for each of PARTNERS, first "true"."""
        from vlpipe.models.interface.outputs import Outputs

        out = Outputs(model, batch, grad=False).view(stream)
        for partner in PARTNERS:
            yield partner, partnered(out, stream, partner)


def partnered(out: Outputs, stream: str, partner: str) -> Outputs:
    """Returns the outputs in which all streams but `stream` are those of the sample ("true") or of the next ("shuffled")."""
    import torch

    own = torch.arange(len(out), device=out.batch.same.device)
    others = own if partner == "true" else own.roll(-1)
    return out.paired({name: own if name == stream else others for name in out.batch.streams})


def predictions(out: Outputs, stream: str, groups: Mapping[str, Tensor]) -> Found:
    """Yields (name, predicted ids, true ids) of what is masked in `stream`: words, and classes that the model predicts."""
    import torch

    from vlpipe.models.interface.batch import IGNORE

    masked = out.stream(stream)
    if "ids" in masked.target:
        at = masked.target["ids"] != IGNORE
        truth = masked.target["ids"][at]
        guess = out.model.predict_words(out.word_hidden[at]).argmax(1)
        yield stream, guess, truth
        for name, ids in groups.items():
            of_group = torch.isin(truth, ids.to(truth.device))
            yield f"{stream}/{name}", guess[of_group], truth[of_group]
    for kind in ("obj", "attr"):
        if "masked" in masked.target and kind in masked.extra and kind in out.model.REGION_KINDS:
            at = masked.target["masked"] & (masked.extra[kind] >= 0)
            guess = out.model.predict_regions(out.region_hidden[at], kind).argmax(1)
            yield f"{stream}/{kind}", guess, masked.extra[kind][at]


def ids_of(words: Sequence[str], tokenizer: Tokenizer) -> Tensor:
    """Returns the token ids of `words`. Raises VlpipeError for one that is not a single token of the vocabulary."""
    import torch

    found = {word: tokenizer.ids(word) for word in words}
    if several := [word for word, ids in found.items() if len(ids) != 1 or ids[0] == tokenizer.unk]:
        raise VlpipeError(f"words: not a single token of the model's vocabulary: {', '.join(several)}")
    return torch.tensor([ids[0] for ids in found.values()])


class Tally:
    """Counts of right predictions and of true answers, by the name of the figure."""

    def __init__(self) -> None:
        self.right: Counter[tuple[str, str]] = Counter()
        self.truth: dict[str, Counter[int]] = defaultdict(Counter)

    def add(self, name: str, partner: str, guess: Tensor, truth: Tensor) -> None:
        self.right[name, partner] += int((guess == truth).sum())
        if partner == "true":
            self.truth[name].update(truth.tolist())

    def results(self, partners: Sequence[str] = PARTNERS) -> Iterator[dict[str, Any]]:
        """Yields rows of RESULTS; the value is null for a figure of no items."""
        for name, answers in self.truth.items():
            num = answers.total()
            counts = {partner: self.right[name, partner] for partner in partners}
            counts["prior"] = max(answers.values(), default=0)
            for kind, count in counts.items():
                yield {"name": f"{name}/{kind}", "value": count / num if num else None, "num_rows": num}
