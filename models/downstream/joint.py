"""The base of heads over a model of images and texts: which model, what it sees, and its joint vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from vlpipe.models.build import build
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.capabilities import Fuses, missing
from vlpipe.models.interface.joint_capabilities import PoolsJointly
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

SYSTEMS = "vlpipe.models.systems"
NOT_SEEN = ("text", "answer")  # streams of a model that are no image: `answer` is a head's own
SECOND = "second_"


class JointModel(Model):
    """Base of heads over `base`, the spec of a model that has `PoolsJointly` or `Fuses`.

    In a recipe, `init_parts: [{weights: ..., into: base}]` gives the base the weights of a trained model of the same sizes.
    tokens: numbers and ids of the tokenizer; from the recipe. blind: a control that sees no image: pixels and features are
    zeros, and an image has one region.
    """

    STREAMS = {"text": "text:Text"}  # noqa: RUF012

    def __init__(
        self, *, base: Mapping[str, Any], tokens: Mapping[str, int] | None = None, blind: bool = False
    ) -> None:
        super().__init__()
        self.base = build(dict(base), SYSTEMS, tokenizer=SimpleNamespace(**(tokens or {})))
        if missing(self.base, [PoolsJointly]) and missing(self.base, [Fuses]):
            raise ValueError(
                f"base: {type(self.base).__name__} has neither `pooled` nor `fused`, so a head finds no joint vector "
                "of a text and its image"
            )
        self.blind = blind
        config = self.base.config
        widths = [getattr(config, name, None) for name in ("width", "text_width")]
        found = getattr(self.base, "joint_width", None) or next((w for w in widths if w), None)
        if found is None:
            raise ValueError(
                f"base: {type(self.base).__name__} does not say the width of its joint vector; give it `joint_width`"
            )
        self.joint_width = int(found)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], tokenizer: Any = None) -> Self:
        if not isinstance(spec.get("base"), Mapping) or "use" not in spec["base"]:
            raise ValueError(
                f"model: {cls.__name__} needs `base`, the model below it, such as {{use: 'vilt:Vilt'}}, got "
                f"{spec.get('base')!r}"
            )
        given = {} if tokenizer is None or "tokens" in spec else {"tokens": tokens_of(tokenizer)}
        return super().from_spec({**spec, **given})

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        own = {name: value for name, value in state.items() if not name.startswith("base.")}
        below = {name.removeprefix("base."): v for name, v in state.items() if name.startswith("base.")}
        return own | {f"base.{name}": value for name, value in self.base.adapted(below).items()}

    def constrain(self) -> None:
        self.base.constrain()

    @property
    def seen(self) -> list[str]:
        """The streams of the base that are its image: pixels, regions or frames."""
        return [name for name in self.base.streams() if name not in NOT_SEEN]

    def streams(self) -> dict[str, dict[str, Any]]:
        """Returns the streams of the base."""
        return {name: spec for name, spec in self.base.streams().items() if name != "answer"}

    def joint(self, streams: Mapping[str, Stream], same: Tensor, texts_per_image: int = 1) -> Tensor:
        """Returns the joint vectors (N, joint_width) of N texts, K = `texts_per_image` for each of N / K images in order.

        An image is encoded once if the base lists its encodings. same: (N / K,) of the batch.
        """
        if self.blind:
            streams = {name: s if name == "text" else unseen(s) for name, s in streams.items()}
        out = Outputs(self.base, Batch(streams, same))
        if texts_per_image > 1:
            texts = torch.arange(len(streams["text"]), device=same.device)
            rows = dict.fromkeys(streams, texts // texts_per_image) | {"text": texts}
            out = out.paired(rows, streams={"text": streams["text"]})
        return pooled(self.base, out)


def pooled(base: Any, out: Outputs) -> Tensor:
    """Returns the joint vectors (B, D) of a model; see `PoolsJointly`."""
    if not missing(base, [PoolsJointly]):
        return out.pooled
    text = out.fused["text"]
    pooler = getattr(base, "pooler", None)
    found: Tensor = text[:, 0] if pooler is None else pooler(text)
    return found


def unseen(stream: Stream) -> Stream:
    """Returns the stream without content: zeros, and one position of what has several per row, (B, L) or (B, L, D)."""
    if stream.data.ndim in (2, 3):  # codes, features of regions or frames, boxes; pixels have more dimensions
        cut = replace(stream, target={}, places={}).map(
            lambda value: value[:, :1] if value.ndim in (2, 3) else value
        )
        mask = torch.ones(cut.data.shape[:2], dtype=torch.bool, device=cut.data.device)
        return replace(cut.map(torch.zeros_like), mask=mask)
    return replace(stream.map(torch.zeros_like), mask=stream.mask)


def tokens_of(tokenizer: Any) -> dict[str, int]:
    """Returns the numbers and ids that a tokenizer has for the constructors of models, by name; those of roles that it lacks
    are left out.
    """
    found = {}
    for name in ("vocab_size", "pad", "unk", "cls", "sep", "mask", "dec", "enc", "start", "end"):
        try:
            found[name] = int(getattr(tokenizer, name))
        except (AttributeError, ValueError, KeyError):
            continue
    return found


class AnswerHead(nn.Sequential):
    """Joint vectors (..., width) -> (..., num_outputs): a layer of `hidden` units, GELU, norm, and a matrix.

    The head of LXMERT, https://arxiv.org/abs/1908.07490, UNITER, https://arxiv.org/abs/1909.11740, and ViLT,
    https://arxiv.org/abs/2102.03334.
    """

    def __init__(self, width: int, hidden: int, num_outputs: int) -> None:
        layers = nn.Linear(width, hidden), nn.GELU(), nn.LayerNorm(hidden, eps=1e-12)
        super().__init__(*layers, nn.Linear(hidden, num_outputs))
