"""The base of heads over another model: how that model is built, and how its weights are named."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Self

from torch import Tensor

from vlpipe.models.build import build
from vlpipe.models.interface.model import Model

SYSTEMS = "vlpipe.models.systems"


class BasedModel(Model):
    """Base of models over `base`, the spec of another one.

    In a recipe, `init_parts: [{weights: ..., into: base}]` gives the base the weights of a trained model of the same sizes.
    tokens: numbers and ids of the tokenizer; from the recipe.
    """

    STREAMS = {"text": "text:Text"}  # noqa: RUF012

    def __init__(self, *, base: Mapping[str, Any], tokens: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.base = build(dict(base), SYSTEMS, tokenizer=SimpleNamespace(**(tokens or {})))

    @property
    def base_width(self) -> int:
        """The width of the base's joint vector or hidden states. Raises ValueError if it does not say it."""
        config = self.base.config
        widths = [getattr(config, name, None) for name in ("width", "text_width")]
        found = getattr(self.base, "joint_width", None) or next((w for w in widths if w), None)
        if found is None:
            raise ValueError(
                f"base: {type(self.base).__name__} does not say the width of its joint vector; give it `joint_width`"
            )
        return int(found)

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
