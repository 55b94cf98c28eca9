"""A BLIP model with its tokenizer, loaded for inference."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vlpipe.models.blip import Blip
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.engine.worker.device import device_of_step
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights


@dataclass(frozen=True)
class Loaded:
    """A BLIP model in eval mode, its tokenizer, and the device it is on."""

    model: Blip
    tokenizer: Tokenizer
    device: torch.device

    @property
    def image_size(self) -> int:
        """The side of the square input image in pixels."""
        return int(self.model.config.image_size)

    @torch.inference_mode()
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, S, S) -> image tokens (B, N, D)."""
        return self.model.encode_image(pixels.to(self.device))

    @torch.inference_mode()
    def image_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image tokens (B, N, D) -> embeddings (B, E), unit norm."""
        return self.model.image_features(tokens)

    @torch.inference_mode()
    def text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask (B, L) -> embeddings (B, E), unit norm."""
        return self.model.text_features(self.model.encode_text(ids.to(self.device), mask.to(self.device)))


def load(weights: Weights, max_length: int = 0) -> Loaded:
    """Loads a model in eval mode, on a GPU if the step asks for one.

    max_length: number of text tokens needed, 0 for any. Raises VlpipeError if the model has fewer text positions.
    """
    device = torch.device(device_of_step())
    model = Blip.load(weights.path).eval().to(device)
    num_positions = model.config.max_text_length
    if max_length > num_positions:
        raise VlpipeError(
            f"the model has {num_positions} text positions, but {max_length} are needed; "
            f"set the stage's max text length to at most {num_positions}"
        )
    return Loaded(model, Tokenizer.load(weights.path), device)
