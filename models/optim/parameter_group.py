"""How some parameters are trained, as YAML states it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters whose names match the globs in `match`, such as "vision.*". What is not set is as for other parameters.

    lr: their peak rate; it follows the recipe's schedule. layer_decay: the rate of layer i of n is multiplied by
    layer_decay ** (n - i), that of parameters in `below`, such as embeddings, by layer_decay ** (n + 1) (BEiT, MAE).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    match: list[str]
    below: list[str] = field(default_factory=list)
    lr: float | None = None
    weight_decay: float | None = None
    optimiser: Literal["adamw", "sgd", "lars"] | None = None
    momentum: float = 0.9  # of sgd and lars
    layer_decay: float | None = None
