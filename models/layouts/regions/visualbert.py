"""VisualBERT in transformers (`VisualBertForPreTraining`).

Its head of two captions has the classes [match, random]; ours are [no, yes], so `BertLayout` swaps the two rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlpipe.models.layouts.table import Entry, layers, linear
from vlpipe.models.layouts.text.bert import LAYER, QKV, BertLayout

TABLES = {
    "words.words": "word",
    "words.positions": "position",
    "words.types": "token_type",
    "region_types": "visual_token_type",
    "region_positions": "visual_position",
}


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights."""
    theirs = "visual_bert.embeddings"
    for own, other in TABLES.items():
        yield Entry(f"{own}.weight", (f"{theirs}.{other}_embeddings.weight",))
    yield from linear("words.norm", f"{theirs}.LayerNorm")
    yield from linear("feat", f"{theirs}.visual_projection")
    yield from layers("blocks", "visual_bert.encoder.layer", c.layers, QKV, LAYER, our_qkv="attention.qkv")
    yield from linear("pooler.dense", "visual_bert.pooler.dense")
    yield from linear("word_head.dense", "cls.predictions.transform.dense")
    yield from linear("word_head.norm", "cls.predictions.transform.LayerNorm")
    yield from linear("word_head.decoder", "cls.predictions.decoder")
    yield from linear("match_head", "cls.seq_relationship")


def read(config: Any) -> dict[str, Any]:
    """Our parameters from a VisualBertConfig. Raises ValueError for one whose regions bypass the transformer."""
    if config.bypass_transformer:
        raise ValueError("checkpoint: a VisualBERT whose regions bypass the transformer is not read")
    if config.type_vocab_size != 2:
        raise ValueError(f"checkpoint: wanted a VisualBERT of 2 types, got {config.type_vocab_size}")
    return {
        "vocab_size": config.vocab_size,
        "feat_dim": config.visual_embedding_dim,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "max_text_length": config.max_position_embeddings,
        "dropout": config.hidden_dropout_prob,
        "norm_eps": config.layer_norm_eps,
        "init_std": config.initializer_range,
    }


def write(c: Any) -> Any:
    """A VisualBertConfig of our config. Raises ValueError for a model whose words see no region, which they lack."""
    from transformers import VisualBertConfig

    if not c.image:
        raise ValueError("export: transformers has no VisualBERT whose words see no region (image: false)")
    return VisualBertConfig(
        vocab_size=c.vocab_size,
        visual_embedding_dim=c.feat_dim,
        hidden_size=c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        intermediate_size=c.mlp_width or 4 * c.width,
        max_position_embeddings=c.max_text_length,
        hidden_dropout_prob=c.dropout,
        attention_probs_dropout_prob=c.dropout,
        layer_norm_eps=c.norm_eps,
        initializer_range=c.init_std,
    )


LAYOUT = BertLayout(
    classes={"pretraining": "VisualBertForPreTraining"},
    entries=entries,
    read=read,
    write=write,
    ignored=r"\.position_ids$|^cls\.predictions\.bias$",
)
