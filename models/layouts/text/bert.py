"""BERT in transformers (`BertForPreTraining`).

Its next-sentence head has the classes [next, not next]; ours are [no, yes], so `Layout` of this module swaps the two rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlpipe.models.layouts.table import Entry, Layout, layers, linear

QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
LAYER = {
    "attention.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}


def encoder(ours: str, theirs: str, num_layers: int) -> Iterator[Entry]:
    """The table of a `BertEncoder`, embeddings included."""
    for name, other in (("words", "word"), ("positions", "position"), ("types", "token_type")):
        yield Entry(f"{ours}.embed.{name}.weight", (f"{theirs}.embeddings.{other}_embeddings.weight",))
    yield from linear(f"{ours}.embed.norm", f"{theirs}.embeddings.LayerNorm")
    yield from layers(
        f"{ours}.blocks", f"{theirs}.encoder.layer", num_layers, QKV, LAYER, our_qkv="attention.qkv"
    )


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights."""
    yield from encoder("encoder", "bert", c.layers)
    yield from linear("pooler.dense", "bert.pooler.dense")
    yield from linear("word_head.dense", "cls.predictions.transform.dense")
    yield from linear("word_head.norm", "cls.predictions.transform.LayerNorm")
    yield from linear("word_head.decoder", "cls.predictions.decoder")
    yield from linear("match_head", "cls.seq_relationship")


def read(config: Any) -> dict[str, Any]:
    """Our parameters from a BertConfig."""
    return {
        "vocab_size": config.vocab_size,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "max_text_length": config.max_position_embeddings,
        "num_types": config.type_vocab_size,
        "dropout": config.hidden_dropout_prob,
        "norm_eps": config.layer_norm_eps,
        "init_std": config.initializer_range,
    }


def write(c: Any) -> Any:
    """A BertConfig of our config."""
    from transformers import BertConfig

    return BertConfig(
        architectures=["BertForPreTraining"],
        vocab_size=c.vocab_size,
        hidden_size=c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        intermediate_size=c.mlp_width or 4 * c.width,
        max_position_embeddings=c.max_text_length,
        type_vocab_size=c.num_types,
        hidden_dropout_prob=c.dropout,
        attention_probs_dropout_prob=c.dropout,
        layer_norm_eps=c.norm_eps,
        initializer_range=c.init_std,
    )


@dataclass(frozen=True, kw_only=True)
class BertLayout(Layout):
    """A `Layout` that swaps the classes of `match_head`."""

    def load(self, cls: Any, folder: Path, changes: Mapping[str, Any]) -> Any:
        model = super().load(cls, folder, changes)
        swap(model.match_head)
        return model

    def export(self, model: Any, folder: Path, kind: str | None) -> None:
        swap(model.match_head)
        try:
            super().export(model, folder, kind)
        finally:
            swap(model.match_head)


@torch.no_grad()
def swap(head: nn.Linear) -> None:
    """Exchanges the two classes of a head."""
    head.weight.copy_(head.weight.flip(0))
    head.bias.copy_(head.bias.flip(0))


LAYOUT = BertLayout(
    classes={"pretraining": "BertForPreTraining"},
    entries=entries,
    read=read,
    write=write,
    ignored=r"\.position_ids$|^cls\.predictions\.bias$",
)
