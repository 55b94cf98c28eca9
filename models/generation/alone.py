"""Decoding by models that write without an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlpipe.models.interface.capabilities import GeneratesAlone, TextRules
from vlpipe.models.interface.outputs import Outputs


class Alone:
    """A model that `GeneratesAlone`, as `sample` and `beam` want it: of the images, only the number counts."""

    def __init__(self, model: GeneratesAlone) -> None:
        self.model = model

    @property
    def text_rules(self) -> TextRules:
        return self.model.text_rules

    def decoder_hidden(self, out: Outputs) -> Tensor:
        return self.model.decoder_hidden(out)

    def predict(self, hidden: Tensor) -> Tensor:
        return self.model.predict(hidden)

    def start_text(self, images: Tensor, room: int, repeats: int = 1) -> Any:
        return self.model.start_alone(len(images) * repeats, room)

    def step_text(self, ids: Tensor, cache: Any) -> Tensor:
        return self.model.step_text(ids, cache)
