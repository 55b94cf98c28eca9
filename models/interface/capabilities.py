"""What a model can do, as Protocols. Objectives and stages ask for them; `plan` says which one a model lacks.

Each method maps `Outputs` to a value that `Outputs` keeps; B rows, E the width of the shared space, L text tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from vlpipe.models.interface.outputs import Outputs


@dataclass(frozen=True, slots=True)
class TextRules:
    """Token ids of generated texts: the first, the end, those never generated; and the number of text positions."""

    first: int
    end: int
    never: Sequence[int]
    max_positions: int


@runtime_checkable
class EmbedsImages(Protocol):
    """Embeds images in a space where dot products compare: (B, E), unit norm."""

    def image_feat(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class EmbedsImageParts(Protocol):
    """Embeds each image several times: (B, Q, E), unit norm; a text is as similar to it as to the nearest of these."""

    def image_feats(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class EmbedsTexts(Protocol):
    """Embeds texts in the space of the images: (B, E), unit norm."""

    def text_feat(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class HasTemperature(Protocol):
    """Has a learned temperature of its similarities, `temp`: a scalar that they are divided by."""

    temp: Any


@runtime_checkable
class Matches(Protocol):
    """Judges whether text and image belong together: logits (B, 2) of [no, yes]."""

    def match(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class Answers(Protocol):
    """Answers questions about images with one of a fixed set of answers: logits (B, answers)."""

    def answer(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class FillsWords(Protocol):
    """Predicts masked words: hidden states (B, L, D) of the text, and logits (..., V) of hidden states."""

    def word_hidden(self, out: Outputs) -> Tensor: ...
    def predict_words(self, hidden: Tensor) -> Tensor: ...


@runtime_checkable
class FillsCodes(Protocol):
    """Predicts masked codes: hidden states (B, T, D) of the codes, and logits (..., C) of hidden states."""

    def code_hidden(self, out: Outputs) -> Tensor: ...
    def predict_codes(self, hidden: Tensor) -> Tensor: ...


class TextCache(Protocol):
    """What a model keeps of texts in progress (`models.blocks.cache`)."""

    def select(self, rows: Tensor) -> None: ...
    def fix(self) -> None: ...
    def tensors(self) -> list[Tensor]: ...
    def copy_(self, other: Any) -> None: ...


@runtime_checkable
class PredictsNext(Protocol):
    """Predicts the next word: hidden states (B, L, D) of texts, and logits (..., V) of hidden states."""

    def decoder_hidden(self, out: Outputs) -> Tensor: ...
    def predict(self, hidden: Tensor) -> Tensor: ...


@runtime_checkable
class Generates(PredictsNext, Protocol):
    """Writes texts about images: predicts the next word, token by token with a cache.

    start_text: a cache for texts of at most `room` tokens about image encodings (B, ...), each `repeats` times. step_text:
    hidden states (B, T, D) of the next ids (B, T), which it adds to the cache, a `TextCache`.
    """

    @property
    def text_rules(self) -> TextRules: ...
    def start_text(self, images: Tensor, room: int, repeats: int = 1) -> Any: ...
    def step_text(self, ids: Tensor, cache: Any) -> Tensor: ...


@runtime_checkable
class GeneratesAlone(PredictsNext, Protocol):
    """Writes texts without an image: as `Generates`. start_alone: a cache for `num` texts of at most `room` tokens."""

    @property
    def text_rules(self) -> TextRules: ...
    def start_alone(self, num: int, room: int) -> Any: ...
    def step_text(self, ids: Tensor, cache: Any) -> Tensor: ...


@runtime_checkable
class ReconstructsPixels(Protocol):
    """Predicts the pixels of all patches: (B, N, patch x patch x 3), from the patches that `keep` leaves visible."""

    def pixel_prediction(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class PredictsRegions(Protocol):
    """Predicts what is in masked regions: hidden states (B, R, D), and of such states (..., D) a prediction of one kind.

    Kinds: "obj" and "attr" are logits (..., classes) of a detector's object and attribute classes, "feat" its feature.
    REGION_KINDS: those that the model has.
    """

    REGION_KINDS: Sequence[str]

    def region_hidden(self, out: Outputs) -> Tensor: ...
    def predict_regions(self, hidden: Tensor, kind: str) -> Tensor: ...


@runtime_checkable
class Fuses(Protocol):
    """Joint hidden states by stream name, (B, L, D) each."""

    def fused(self, out: Outputs) -> dict[str, Tensor]: ...


def missing(model: Any, needs: Iterable[type]) -> list[type]:
    """Returns the capabilities that `model` lacks: no such methods, or built without that part (`lacks`)."""
    lacks = getattr(model, "lacks", lambda capability: False)
    return [need for need in needs if not isinstance(model, need) or lacks(need)]


def need(model: Any, needs: Sequence[type], who: str) -> None:
    """Raises ValueError, naming `who`, if `model` lacks one of these capabilities."""
    if lacking := missing(model, needs):
        texts = "; ".join(f"{cap.__name__}: {(cap.__doc__ or '').split(':')[0].strip()}" for cap in lacking)
        raise ValueError(f"{who} needs a model that has more than {type(model).__name__} offers ({texts})")
