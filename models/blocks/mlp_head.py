"""Projection and prediction heads: linear layers with ReLU between them, with or without batch norms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

LastNorm = Literal["none", "scale", "fixed"]


class MlpHead(nn.Sequential):
    """(B, widths[0]) -> (B, widths[-1]).

    norm: a batch norm after each hidden layer, whose linear layer then has no bias. last: after the last layer, which then
    has none either: a batch norm with a scale but no shift ("scale"), or with neither ("fixed"). last_bias: whether the last
    layer has one if it has no norm.
    """

    def __init__(
        self, widths: Sequence[int], *, norm: bool = False, last: LastNorm = "none", last_bias: bool = True
    ) -> None:
        layers: list[nn.Module] = []
        for width_in, width in pairwise(widths[:-1]):
            layers.append(nn.Linear(width_in, width, bias=not norm))
            layers += [nn.BatchNorm1d(width)] if norm else []
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias and last == "none"))
        if last != "none":
            layers.append(nn.BatchNorm1d(widths[-1], affine=last == "scale"))
        if last == "scale":
            layers[-1].bias.requires_grad_(False)
        super().__init__(*layers)
