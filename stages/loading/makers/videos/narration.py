"""What is said during clips, as ids of words: of each clip one text, or a bag of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from vlpipe.stages.loading.makers.base import ROW, SAYS, Item, Maker, folded, note
from vlpipe.stages.loading.makers.videos.clips import CLIPS, OfVideo
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Stream

MAX_WORDS = 20  # HowTo100M and MIL-NCE, in training; 30 in evaluation


@dataclass(frozen=True, kw_only=True)
class Narration(Maker):
    """Ids (B, 1, 1, L) of the words of a clip's text, with mask; words that the tokenizer does not know are left out.

    max_words: L; a longer text is cut.
    """

    NEEDS_TEXT: ClassVar[bool] = True

    tokenizer: Any = field(repr=False)
    max_words: int = MAX_WORDS

    def __call__(self, row: Row | None, text: str, rng: np.random.Generator) -> Item:
        return bag_item([[text]], row, self.tokenizer, 1, self.max_words)

    def collate(self, items: Sequence[Item]) -> Stream:
        return _masked(super().collate(items), self.tokenizer.pad)


@dataclass(frozen=True, kw_only=True)
class Candidates(Narration):
    """Ids (B, 1, K, L) of the words of the first `num_candidates` candidates of a clip (`clips.milnce`), nearest first.

    A row without candidates has its text; a clip with fewer has bags without words in their place, which the mask tells.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("candidates",)

    num_candidates: int = 5  # the paper's best

    def __call__(self, row: Row | None, text: str, rng: np.random.Generator) -> Item:
        found = None if row is None else row.columns["candidates"].as_py()
        texts = [one["text"] for one in found or ()] or [text]
        return bag_item([texts], row, self.tokenizer, self.num_candidates, self.max_words)


@dataclass(frozen=True, kw_only=True)
class VideoNarration(OfVideo):
    """Ids (B, N, K, L) of the words said during N = `pairs` clips of a video; K, L as in `Candidates`."""

    COLUMNS: ClassVar[tuple[str, ...]] = (CLIPS,)

    tokenizer: Any = field(repr=False)
    max_words: int = MAX_WORDS
    num_candidates: int = 1

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        clips = self.drawn(row, rng)
        texts = [clip["candidates"] or [clip["text"]] for clip in clips]
        return bag_item(texts, row, self.tokenizer, self.num_candidates, self.max_words)

    def collate(self, items: Sequence[Item]) -> Stream:
        return _masked(super().collate(items), self.tokenizer.pad)


@dataclass(frozen=True, kw_only=True)
class VideoText(OfVideo):
    """Token ids (B, N, L) of what is said during N = `pairs` clips of a video, each with start and end token, and mask.

    max_length: L at most; a longer text is cut. max_positions: the number of positions that the model has.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = (CLIPS,)

    tokenizer: Any = field(repr=False)
    max_length: int = 48  # UniVL
    max_positions: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 3 <= self.max_length <= (self.max_positions or self.max_length):
            raise ValueError(
                f"streams: max_length must be from 3 to {self.max_positions or 'any'}, the positions of the model, got "
                f"{self.max_length}"
            )

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        texts = [clip["text"] for clip in self.drawn(row, rng)]
        ids = [self.tokenizer.encode_one(one, self.max_length)[0] for one in texts]
        data = np.full((len(ids), self.max_length), self.tokenizer.pad, np.int64)
        for clip, some in enumerate(ids):
            data[clip, : len(some)] = some
        lengths = np.array([len(some) for some in ids])
        return {
            "data": data,
            "lengths": lengths,
            ROW: note(row.image_id),
            SAYS: note(folded(" | ".join(texts))),
        }

    def collate(self, items: Sequence[Item]) -> Stream:
        import torch

        lengths = torch.from_numpy(np.stack([one["lengths"] for one in items]))
        found, longest = super().collate(items), int(lengths.max())
        return replace(found, data=found.data[..., :longest], mask=torch.arange(longest) < lengths[..., None])


def bag_item(
    texts: Sequence[Sequence[str]], row: Row | None, tokenizer: Any, num: int, max_words: int
) -> Item:
    """Returns the item of N clips with several texts each: `data` (N, num, max_words)."""
    data = np.full((len(texts), num, max_words), tokenizer.pad, np.int64)
    for clip, several in enumerate(texts):
        for k, one in enumerate(several[:num]):
            ids = known(tokenizer, one)[:max_words]
            data[clip, k, : len(ids)] = ids
    found: Item = {
        "data": data,
        SAYS: note(folded(" | ".join(t for several in texts for t in several[:num]))),
    }
    return found if row is None else {**found, ROW: note(row.image_id)}


def known(tokenizer: Any, text: str) -> npt.NDArray[np.int64]:
    """Returns the ids of the words of a text that the tokenizer knows."""
    return np.array([i for i in tokenizer.ids(text) if i != tokenizer.unk], np.int64)


def _masked(stream: Stream, pad: int) -> Stream:
    return replace(stream, mask=stream.data != pad)
