"""CLIP's encoders in transformers: names of their layers, and the table of the ViT, which LLaVA has too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlpipe.models.layouts.table import Entry, layers, linear

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LAYER = {
    "norm1": "layer_norm1",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def vision_tower(c: Any, theirs: str, *, part: str, blocks: str) -> Iterator[Entry]:
    """The table of the ViT.

    part: prefix of our patches and first norm; blocks: name of our encoder.
    """
    width, num_positions = c.vision_width, 1 + (c.image_size // c.patch_size) ** 2
    yield Entry(
        f"{part}patches.class_token",
        (f"{theirs}.embeddings.class_embedding",),
        shape=(1, 1, width),
        their_shape=(width,),
    )
    yield Entry(
        f"{part}patches.positions",
        (f"{theirs}.embeddings.position_embedding.weight",),
        shape=(1, num_positions, width),
        their_shape=(num_positions, width),
    )
    yield from linear(f"{part}patches.patch", f"{theirs}.embeddings.patch_embedding", bias=False)
    yield from linear(f"{part}pre_norm", f"{theirs}.pre_layrnorm")
    yield from layers(f"{blocks}.blocks", f"{theirs}.encoder.layers", c.vision_layers, QKV, LAYER)
    yield from linear(f"{blocks}.norm", f"{theirs}.post_layernorm")
