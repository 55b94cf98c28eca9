"""The settings of adversarial training, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import ConfigDict


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Training on perturbed inputs, too: VILLA. Gan et al. 2020, https://arxiv.org/abs/2006.06195.

    The loss of a step is L(x) + the sum over streams s of [L(x + d_s) + kl (KL(p || p_s) + KL(p_s || p))], p and p_s the
    predictions of x and of x + d_s; losses without a distribution, such as regression, have no such KL, and of answers that
    are each right or wrong (VQA's), it is the sum over answers. One stream is perturbed at a time: d of a stream of features
    is added to these, d of a text to its word embeddings, and neither to positions or types. `steps` times the gradient of
    this is taken, its mean is the gradient of the optimiser step ("free" training), and after each time d moves by `lr`
    along its own gradient, whose L2 norm over all positions of a sample is made 1; then d is scaled back to a norm of
    `radius`. d starts at uniform values up to `start`, divided by the square root of their number. alternate: each optimiser
    step perturbs one of the streams, in turn.

    Defaults are the released code's: no radius (None), a start at zero. The paper perturbs all streams in each step; the
    released code one, which is `alternate`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    streams: list[str] = field(default_factory=lambda: ["text", "regions"])
    steps: int = 3
    lr: float = 1e-3
    kl: float = 1.5
    radius: float | None = None
    start: float = 0.0
    alternate: bool = False

    def streams_of(self, step: int) -> list[str]:
        """Returns the streams that an optimiser step perturbs."""
        return [self.streams[step % len(self.streams)]] if self.alternate else self.streams

    @property
    def passes(self) -> int:
        """How many times an optimiser step goes forward and backward through the model, where plain training does once."""
        return self.steps * (1 + (1 if self.alternate else len(self.streams)))

    def problems(self) -> list[tuple[bool, str]]:
        """Returns (whether it is wrong, what is said of it) of each setting."""
        positive = min(self.lr, 1.0 if self.radius is None else self.radius)
        return [
            (not self.streams, "adversarial: wanted at least one stream, got none"),
            (self.steps < 1, f"adversarial.steps must be at least 1, got {self.steps}"),
            (
                positive <= 0,
                f"adversarial: lr and radius must be above 0, got {self.lr} and {self.radius}",
            ),
            (
                min(self.kl, self.start) < 0,
                f"adversarial: kl and start must be at least 0, got {self.kl} and {self.start}",
            ),
        ]
