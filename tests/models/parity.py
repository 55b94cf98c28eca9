"""Shared by the parity tests: noise for weights that start at zero, and a batch of the two streams image and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs

PIXELS = (5, 3, 32, 32)
LENGTHS = torch.tensor([10, 9, 8, 7, 4])
TOLERANCE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}


def noisy(module: nn.Module, *, but: str = "position") -> Any:
    """Adds noise to all parameters whose name lacks `but`, so that biases and norms matter; returns it in eval mode."""
    for name, parameter in module.named_parameters():
        if but not in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def through_a_folder(theirs: Any, path: Path) -> Any:
    """Saves a transformers model and returns ours of that folder."""
    theirs.save_pretrained(path)
    return folder.load(path).eval()


def texts(vocab_size: int, end: int) -> tuple[Tensor, Tensor]:
    """Ids (5, 10) of different lengths with `end` last, and their mask."""
    ids = torch.randint(10, vocab_size, (5, 10))
    mask = torch.arange(10)[None] < LENGTHS[:, None]
    ids[torch.arange(5), LENGTHS - 1] = end
    return ids.masked_fill(~mask, 0), mask


def outputs(model: Any, **streams: Stream) -> Outputs:
    """Returns the outputs of five rows, each a picture of its own."""
    return Outputs(model, Batch(streams=streams, same=torch.arange(5)))
