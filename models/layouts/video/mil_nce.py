"""MIL-NCE's weights as published (https://github.com/antoine77340/S3D_HowTo100M): S3D-G, words and text layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.layouts.table import Entry, linear
from vlpipe.models.layouts.video.state import State, StateLayout

TEXT, TABLE = "text_module.", "text_module.word_embd.weight"


def entries(config: Any) -> Iterator[Entry]:
    yield from linear("text.fc1", "text_module.fc1")
    yield from linear("text.fc2", "text_module.fc2")


def read(state: State) -> dict[str, Any]:
    return {
        "vocab_size": len(state[TABLE]) + 1,  # the last is of words that are not in the list
        "word_dim": state[TABLE].shape[1],
        "text_width": len(state["text_module.fc1.weight"]),
        "embed_dim": len(state["fc.weight"]),
        "feat_dim": None,
        "space_to_depth": state["conv1.conv1.weight"].shape[1] == 24,
        "pad_counts": True,
    }


def more(state: State, model: Any) -> dict[str, Tensor]:
    """S3D-G under its own names, and the words with one of zeros for those not in the list."""
    table = state[TABLE]
    found = {f"video.{name}": value for name, value in state.items() if not name.startswith(TEXT)}
    return {**found, "text.words.weight": torch.cat([table, table.new_zeros(1, table.shape[1])])}


LAYOUT = StateLayout(
    entries=entries, read=read, more=more, ignored=r"^(?!text_module\.)|^text_module\.word_embd\.weight$"
)
