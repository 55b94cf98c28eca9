"""ViLT in transformers (`ViltForMaskedLM`). Their retrieval class has one matching logit where pretraining has two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlpipe.models.layouts.table import Entry, Layout, layers, linear

QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
LAYER = {
    "norm1": "layernorm_before",
    "out": "attention.output.dense",
    "norm2": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights but the matching head, which their class lacks."""
    theirs = "vilt.embeddings"
    yield Entry("words.words.weight", (f"{theirs}.text_embeddings.word_embeddings.weight",))
    yield Entry("words.positions.weight", (f"{theirs}.text_embeddings.position_embeddings.weight",))
    yield Entry("words.types.weight", (f"{theirs}.text_embeddings.token_type_embeddings.weight",))
    yield from linear("words.norm", f"{theirs}.text_embeddings.LayerNorm")
    yield Entry("patches.class_token", (f"{theirs}.cls_token",))
    yield Entry("patches.positions", (f"{theirs}.position_embeddings",))
    yield from linear("patches.patch", f"{theirs}.patch_embeddings.projection")
    yield Entry("modality.weight", (f"{theirs}.token_type_embeddings.weight",))
    yield from layers("encoder.blocks", "vilt.encoder.layer", c.layers, QKV, LAYER)
    yield from linear("encoder.norm", "vilt.layernorm")
    yield from linear("pooler.dense", "vilt.pooler.dense")
    yield from linear("word_head.dense", "mlm_score.transform.dense")
    yield from linear("word_head.norm", "mlm_score.transform.LayerNorm")
    yield from linear("word_head.decoder", "mlm_score.decoder")


def read(config: Any) -> dict[str, Any]:
    """Our parameters from a ViltConfig."""
    return {
        "vocab_size": config.vocab_size,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "max_text_length": config.max_position_embeddings,
        "dropout": config.hidden_dropout_prob,
        "norm_eps": config.layer_norm_eps,
        "tie_words": config.tie_word_embeddings,
    }


def write(c: Any) -> Any:
    """A ViltConfig of our config."""
    from transformers import ViltConfig

    return ViltConfig(
        vocab_size=c.vocab_size,
        image_size=c.image_size,
        patch_size=c.patch_size,
        hidden_size=c.width,
        intermediate_size=4 * c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        max_position_embeddings=c.max_text_length,
        hidden_dropout_prob=c.dropout,
        layer_norm_eps=c.norm_eps,
        tie_word_embeddings=c.tie_words,
    )


LAYOUT = Layout(classes={"masked_lm": "ViltForMaskedLM"}, entries=entries, read=read, write=write)
