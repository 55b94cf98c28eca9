"""iGPT in transformers (`ImageGPTForCausalImageModeling`), whose matrices are stored the other way round, with biases."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import Any

from vlpipe.models.layouts.table import Entry, Layout

TURNED = {"qkv": "attn.c_attn", "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
NORMS = {"norm1": "ln_1", "norm2": "ln_2"}


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights but a palette's."""
    yield Entry("words.weight", ("transformer.wte.weight",))
    yield Entry("positions.weight", ("transformer.wpe.weight",))
    for i in range(c.layers):
        for ours, theirs in TURNED.items():
            yield Entry(f"layers.{i}.{ours}.weight", (f"transformer.h.{i}.{theirs}.weight",), turned=True)
            if c.bias:
                yield Entry(f"layers.{i}.{ours}.bias", (f"transformer.h.{i}.{theirs}.bias",))
        for ours, theirs in NORMS.items():
            yield Entry(f"layers.{i}.{ours}.weight", (f"transformer.h.{i}.{theirs}.weight",))
    yield Entry("norm.weight", ("transformer.ln_f.weight",))
    yield Entry("code_head.weight", ("lm_head.weight",))


def read(config: Any) -> dict[str, Any]:
    """Our parameters from an ImageGPTConfig. Raises ValueError for a network that iGPT's authors do not have."""
    size = isqrt(config.n_positions)
    if (
        config.n_inner not in (None, 4 * config.n_embd)
        or not config.scale_attn_weights
        or config.scale_attn_by_inverse_layer_idx
        or config.add_cross_attention
        or config.tie_word_embeddings
        or config.activation_function != "quick_gelu"
    ):
        raise ValueError(
            "checkpoint: wanted an ImageGPT with inner layers of 4 x n_embd, attention scaled by the width of a head alone, "
            "quick_gelu, a matrix of logits of its own and no cross-attention"
        )
    if size**2 != config.n_positions:
        raise ValueError(f"checkpoint: wanted the positions of a square image, got {config.n_positions}")
    return {
        "num_codes": config.vocab_size - 1,
        "image_size": size,
        "width": config.n_embd,
        "layers": config.n_layer,
        "heads": config.n_head,
        "norm_eps": config.layer_norm_epsilon,
        "bias": True,
    }


def write(c: Any) -> Any:
    """An ImageGPTConfig of our config. Raises ValueError for a model that sees all places: theirs predicts the next code."""
    from transformers import ImageGPTConfig

    if not c.causal:
        raise ValueError("export: transformers' ImageGPT predicts the next code; this iGPT fills hidden ones")
    return ImageGPTConfig(
        vocab_size=c.num_codes + 1,
        n_positions=c.image_size**2,
        n_embd=c.width,
        n_layer=c.layers,
        n_head=c.heads,
        activation_function=c.activation,
        layer_norm_epsilon=c.norm_eps,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


LAYOUT = Layout(
    classes={"next_code": "ImageGPTForCausalImageModeling"}, entries=entries, read=read, write=write
)
