"""DALL-E's encoder in transformers (`FlavaImageCodebook`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlpipe.models.layouts.table import Entry, linear

GROUPS = 4


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights; convolutions have a weight and a bias as linear layers do."""
    codebook = _dalle(c)
    yield from linear("codebook.input", "blocks.input")
    for k in range(GROUPS):
        for i in range(codebook["depth"]):
            ours, theirs = f"codebook.groups.{k}.{i}", f"blocks.group_{k + 1}.group.block_{i + 1}"
            for conv in range(1, 5):
                yield from linear(f"{ours}.conv{conv}", f"{theirs}.res_path.path.conv_{conv}")
            if k and i == 0:
                yield from linear(f"{ours}.shortcut", f"{theirs}.id_path")
    yield from linear("codebook.output", "blocks.output.conv")


def read(config: Any) -> dict[str, Any]:
    """Our parameters from a FlavaImageCodebookConfig. Raises ValueError for other than four groups and three colours."""
    if config.num_groups != GROUPS or config.input_channels != 3:
        raise ValueError(
            f"checkpoint: wanted a codebook of {GROUPS} groups and 3 colours, got {config.num_groups} and "
            f"{config.input_channels}"
        )
    sizes = {
        "num_codes": config.vocab_size,
        "width": config.hidden_size,
        "depth": config.num_blocks_per_group,
    }
    return {"codebook": {"use": "dalle:DalleEncoder", **sizes}}


def write(c: Any) -> Any:
    """A FlavaImageCodebookConfig of our config. Raises ValueError for another codebook than DALL-E's."""
    from transformers import FlavaImageCodebookConfig

    codebook = _dalle(c)
    return FlavaImageCodebookConfig(
        vocab_size=codebook["num_codes"],
        hidden_size=codebook["width"],
        num_blocks_per_group=codebook["depth"],
    )


def _dalle(c: Any) -> dict[str, Any]:
    found = {
        "use": "dalle:DalleEncoder",
        "num_codes": 8192,
        "width": 256,
        "depth": 2,
        **(c.codebook or {}),
    }
    if found["use"] != "dalle:DalleEncoder":
        raise ValueError(f"export: transformers has no codebook like {found['use']}")
    return found
