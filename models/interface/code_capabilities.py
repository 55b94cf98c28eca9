"""What a model can do with the discrete codes of images, as Protocols like those of `capabilities`.

B images of N places, row by row, and K codes; D the width of hidden states.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from vlpipe.models.interface.outputs import Outputs


@runtime_checkable
class PaintsCodes(Protocol):
    """Paints images of codes: codes (B, N) -> pixels (B, 3, S, S) from 0 to 1."""

    def paint(self, codes: Tensor) -> Tensor: ...


@runtime_checkable
class Autoencodes(Protocol):
    """Encodes images as codes and decodes them: logits (B, K, H, W) of the codes of the places; the pixels (B, 3, S, S) from
    0 to 1; and of weights (B, K, H, W) of the codes, one-hot or relaxed, the location and the logarithm of the scale of each
    pixel's logit, (B, 6, S, S).
    """

    def code_logits(self, out: Outputs) -> Tensor: ...
    def pixels(self, out: Outputs) -> Tensor: ...
    def decoded(self, weights: Tensor) -> Tensor: ...


@runtime_checkable
class PredictsNextCodes(Protocol):
    """Predicts the codes of an image one after the other: hidden states (B, N, D), of which place i has seen the
    codes before it; logits (..., K) of hidden states; the true codes (B, N). num_places: N.
    """

    num_places: int

    def next_code_hidden(self, out: Outputs) -> Tensor: ...
    def predict_codes(self, hidden: Tensor) -> Tensor: ...
    def image_codes(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class DrawsCodes(Protocol):
    """Draws the codes of an image one after the other, with a cache.

    start_codes: a cache and the hidden state (B, D) of the first code, of what else the model reads in
    `out`. step_codes: hidden states (B, T, D) of the codes after the next T ones (B, T), which it adds to the cache.
    """

    num_places: int

    def start_codes(self, out: Outputs) -> tuple[Any, Tensor]: ...
    def step_codes(self, codes: Tensor, cache: Any) -> Tensor: ...
    def predict_codes(self, hidden: Tensor) -> Tensor: ...
