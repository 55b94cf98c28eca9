"""SigLIP in transformers (`SiglipModel`).

Released models read texts without a start token, and tokenizers here always write one: their image side can be used as it
is, their texts only after training on with a tokenizer of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlpipe.models.layouts.table import Entry, Layout, layers, linear

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LAYER = {
    "norm1": "layer_norm1",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
ACTIVATION, NORM_EPS = "gelu_pytorch_tanh", 1e-6


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights."""
    image, text, head = "vision_model", "text_model", "vision_model.head"
    yield Entry("logit_scale", ("logit_scale",))
    yield Entry("logit_bias", ("logit_bias",))
    yield from linear("vision.patch", f"{image}.embeddings.patch_embedding")
    yield Entry(
        "vision.positions",
        (f"{image}.embeddings.position_embedding.weight",),
        shape=(1, -1, c.vision_width),
        their_shape=(-1, c.vision_width),
    )
    yield from layers("vision.encoder.blocks", f"{image}.encoder.layers", c.vision_layers, QKV, LAYER)
    yield from linear("vision.encoder.norm", f"{image}.post_layernorm")
    yield Entry("head.pool.queries", (f"{head}.probe",))
    for part in ("weight", "bias"):
        yield Entry(f"head.pool.attention.qkv.{part}", (f"{head}.attention.in_proj_{part}",))
    yield from linear("head.pool.attention.out", f"{head}.attention.out_proj")
    yield from linear("head.norm", f"{head}.layernorm")
    yield from linear("head.up", f"{head}.mlp.fc1")
    yield from linear("head.down", f"{head}.mlp.fc2")
    yield Entry("words.words.weight", (f"{text}.embeddings.token_embedding.weight",))
    yield Entry("words.positions.weight", (f"{text}.embeddings.position_embedding.weight",))
    yield from layers("text.blocks", f"{text}.encoder.layers", c.text_layers, QKV, LAYER)
    yield from linear("text.norm", f"{text}.final_layer_norm")
    yield from linear("text_proj", f"{text}.head")


def read(config: Any) -> dict[str, Any]:
    """Our parameters from a SiglipConfig.

    Raises ValueError for another activation or epsilon than the published models', for a vision tower without head, and for
    texts that are projected to another width than that of images.
    """
    image, text = config.vision_config, config.text_config
    other = [
        f"{name}: {got} instead of {wanted}"
        for name, got, wanted in (
            ("vision hidden_act", image.hidden_act, ACTIVATION),
            ("text hidden_act", text.hidden_act, ACTIVATION),
            ("vision layer_norm_eps", image.layer_norm_eps, NORM_EPS),
            ("text layer_norm_eps", text.layer_norm_eps, NORM_EPS),
            ("vision_use_head", getattr(image, "vision_use_head", True), True),
            ("projection_size", text.projection_size, image.hidden_size),
        )
        if got != wanted
    ]
    if other:
        raise ValueError(f"model: this SigLIP is not as published: {', '.join(other)}")
    return {
        "vocab_size": text.vocab_size,
        "pad": text.pad_token_id,
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        "vision_width": image.hidden_size,
        "vision_layers": image.num_hidden_layers,
        "vision_heads": image.num_attention_heads,
        "vision_mlp": image.intermediate_size,
        "text_width": text.hidden_size,
        "text_layers": text.num_hidden_layers,
        "text_heads": text.num_attention_heads,
        "text_mlp": text.intermediate_size,
        "max_text_length": text.max_position_embeddings,
    }


def write(c: Any) -> Any:
    """A SiglipConfig of our config."""
    from transformers import SiglipConfig

    shared = {"hidden_act": ACTIVATION, "layer_norm_eps": NORM_EPS}
    text = {
        "vocab_size": c.vocab_size,
        "pad_token_id": c.pad,
        "hidden_size": c.text_width,
        "intermediate_size": c.text_mlp or 4 * c.text_width,
        "num_hidden_layers": c.text_layers,
        "num_attention_heads": c.text_heads,
        "max_position_embeddings": c.max_text_length,
        "projection_size": c.vision_width,
    }
    image = {
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_size": c.vision_width,
        "intermediate_size": c.vision_mlp or 4 * c.vision_width,
        "num_hidden_layers": c.vision_layers,
        "num_attention_heads": c.vision_heads,
    }
    return SiglipConfig(text_config={**text, **shared}, vision_config={**image, **shared})


LAYOUT = Layout(classes={"model": "SiglipModel"}, entries=entries, read=read, write=write)
