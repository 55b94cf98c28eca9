"""Accuracy of contrasts whose right answer stands first."""

from __future__ import annotations

from torch import Tensor


def first_alone(logits: Tensor, left_out: Tensor | None = None) -> Tensor:
    """Returns (B,) bool: whether the first of (B, 1 + K) is greater than each of the others; true if there are none.

    A tie is wrong: an argmax returns the first of equal values, and would call a model that embeds all images as one vector
    right every time. left_out: (B, K) bool, of others that do not count.
    """
    greater = logits[:, :1] > logits[:, 1:]
    return (greater if left_out is None else greater | left_out).all(1)
