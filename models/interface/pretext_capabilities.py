"""What models trained by tasks made from images alone can do, as Protocols like those of `capabilities`."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from vlpipe.models.interface.outputs import Outputs


@runtime_checkable
class PredictsRows(Protocol):
    """Predicts vectors of an image's places some rows below: vectors (B, R, C, E), and predictions (B, K, R, C, E).

    Prediction k of the place at row r is of row r + `first_step` + k, in the same column.
    """

    first_step: int

    def place_feats(self, out: Outputs) -> Tensor: ...
    def row_predictions(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class EmbedsRows(Protocol):
    """Embeds two views of each of `num_rows` numbered images: (B, 2, E), unit norm; E is its `projection_dim`."""

    num_rows: int
    projection_dim: int

    def view_feats(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class Colours(Protocol):
    """Tells the colours of a grey image: logits (B, Q, h, w) of bins, beside the true ab (B, 2, h, w).

    bins: `blocks.colour.bins.ColourBins`.
    """

    bins: Any

    def colour_logits(self, out: Outputs) -> Tensor: ...
    def true_ab(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class FillsHoles(Protocol):
    """Fills the hole of an image: (B, 3, h, w) from -1 to 1, the picture or its middle, beside the true pixels there.

    hole_size: h = w. rescaled: a module from normalised pixels to values from -1 to 1.
    """

    hole_size: int
    rescaled: Any

    def filled(self, out: Outputs) -> Tensor: ...
    def true_part(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class Denoises(Protocol):
    """Reconstructs values from noisy ones: (B, D), before a sigmoid, beside the clean values (B, D) from 0 to 1."""

    def denoised(self, out: Outputs) -> Tensor: ...
    def clean(self, out: Outputs) -> Tensor: ...
