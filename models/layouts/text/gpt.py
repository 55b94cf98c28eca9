"""GPT in transformers (`OpenAIGPTLMHeadModel`), whose matrices are stored the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlpipe.models.layouts.table import Entry, Layout, linear

TURNED = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights."""
    yield Entry("words.words.weight", ("transformer.tokens_embed.weight",))
    yield Entry("words.words.weight", ("lm_head.weight",), optional=True)
    yield Entry("words.positions.weight", ("transformer.positions_embed.weight",))
    for i in range(c.layers):
        for ours, theirs in TURNED.items():
            yield Entry(f"layers.{i}.{ours}.weight", (f"transformer.h.{i}.{theirs}.weight",), turned=True)
            yield Entry(f"layers.{i}.{ours}.bias", (f"transformer.h.{i}.{theirs}.bias",))
        yield from linear(f"layers.{i}.attention.norm", f"transformer.h.{i}.ln_1")
        yield from linear(f"layers.{i}.norm", f"transformer.h.{i}.ln_2")


def read(config: Any) -> dict[str, Any]:
    """Our parameters from an OpenAIGPTConfig. Raises ValueError for another activation than GPT's."""
    if config.afn != "gelu":
        raise ValueError(f"checkpoint: this GPT has the activation {config.afn!r}; here it is gelu")
    return {
        "vocab_size": config.vocab_size,
        "width": config.n_embd,
        "layers": config.n_layer,
        "heads": config.n_head,
        "max_text_length": config.n_positions,
        "dropout": config.resid_pdrop,
        "init_std": config.initializer_range,
    }


def write(c: Any) -> Any:
    """An OpenAIGPTConfig of our config."""
    from transformers import OpenAIGPTConfig

    return OpenAIGPTConfig(
        vocab_size=c.vocab_size,
        n_embd=c.width,
        n_layer=c.layers,
        n_head=c.heads,
        n_positions=c.max_text_length,
        resid_pdrop=c.dropout,
        embd_pdrop=c.dropout,
        attn_pdrop=c.dropout,
        initializer_range=c.init_std,
    )


LAYOUT = Layout(classes={"lm": "OpenAIGPTLMHeadModel"}, entries=entries, read=read, write=write)
