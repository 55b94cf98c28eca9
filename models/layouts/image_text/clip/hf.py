"""CLIP in transformers (`CLIPModel`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlpipe.models.layouts.image_text.clip.tower import LAYER, QKV, vision_tower
from vlpipe.models.layouts.table import Entry, layers, linear


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights."""
    image, text = "vision_model", "text_model"
    yield Entry("logit_scale", ("logit_scale",))
    yield from vision_tower(c, image, part="", blocks="vision")
    yield Entry("words.words.weight", (f"{text}.embeddings.token_embedding.weight",))
    yield Entry("words.positions.weight", (f"{text}.embeddings.position_embedding.weight",))
    yield from layers("text.blocks", f"{text}.encoder.layers", c.text_layers, QKV, LAYER)
    yield from linear("text.norm", f"{text}.final_layer_norm")
    yield from linear("image_proj", "visual_projection", bias=False)
    yield from linear("text_proj", "text_projection", bias=False)


def read(config: Any) -> dict[str, Any]:
    """Our parameters from a CLIPConfig. Configs older than transformers 4.30 have `eos_token_id` 2 for 49407."""
    image, text = config.vision_config, config.text_config
    end = text.eos_token_id
    return {
        "vocab_size": text.vocab_size,
        "end": 49407 if end == 2 and text.vocab_size == 49408 else end,
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        "vision_width": image.hidden_size,
        "vision_layers": image.num_hidden_layers,
        "vision_heads": image.num_attention_heads,
        "text_width": text.hidden_size,
        "text_layers": text.num_hidden_layers,
        "text_heads": text.num_attention_heads,
        "max_text_length": text.max_position_embeddings,
        "embed_dim": config.projection_dim,
        "activation": text.hidden_act,
    }


def write(c: Any) -> Any:
    """A CLIPConfig of our config."""
    from transformers import CLIPConfig

    shared = {"hidden_act": c.activation, "projection_dim": c.embed_dim, "layer_norm_eps": 1e-5}
    text = {
        "vocab_size": c.vocab_size,
        "eos_token_id": c.end,
        "hidden_size": c.text_width,
        "intermediate_size": 4 * c.text_width,
        "num_hidden_layers": c.text_layers,
        "num_attention_heads": c.text_heads,
        "max_position_embeddings": c.max_text_length,
    }
    image = {
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_size": c.vision_width,
        "intermediate_size": 4 * c.vision_width,
        "num_hidden_layers": c.vision_layers,
        "num_attention_heads": c.vision_heads,
    }
    return CLIPConfig(
        text_config={**text, **shared}, vision_config={**image, **shared}, projection_dim=c.embed_dim
    )
