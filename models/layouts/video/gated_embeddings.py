"""HowTo100M's weights as published (https://github.com/antoine77340/howto100m): word vectors are not among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from vlpipe.models.layouts.table import Entry, linear
from vlpipe.models.layouts.video.state import State, StateLayout

NO_WORDS = 2  # padding and unknown words


def entries(config: Any) -> Iterator[Entry]:
    yield from linear("text.fc1", "text_pooling.fc")
    for ours, theirs in (("text_gate", "GU_text"), ("video_gate", "GU_video")):
        yield from linear(f"{ours}.fc", f"{theirs}.fc")
        yield from linear(f"{ours}.gate", f"{theirs}.cg.fc")
        if config.batch_norm:
            for name in ("weight", "bias", "running_mean", "running_var"):
                yield Entry(f"{ours}.norm.{name}", (f"{theirs}.cg.batch_norm.{name}",))


def read(state: State) -> dict[str, Any]:
    """The model has no words: `init_parts` takes its parts, and word vectors from `words.word_list`."""
    width_in = state["GU_video.fc.weight"].shape[1]
    return {
        "vocab_size": NO_WORDS,
        "feat_dims": [width_in // 2] * 2 if width_in == 4096 else [width_in],
        "word_dim": state["text_pooling.fc.weight"].shape[1],
        "embed_dim": len(state["GU_video.fc.weight"]),
        "batch_norm": "GU_video.cg.batch_norm.weight" in state,
        "pad_counts": True,
    }


def more(state: State, model: Any) -> dict[str, Tensor]:
    own = model.state_dict()
    return {name: own[name] for name in own if name == "text.words.weight" or "num_batches" in name}


LAYOUT = StateLayout(entries=entries, read=read, more=more)
