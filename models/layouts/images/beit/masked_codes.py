"""BEiT in transformers (`BeitForMaskedImageModeling`). A codebook is not part of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlpipe.models.layouts.table import Entry, linear

LAYER = {
    "norm1": "layernorm_before",
    "out": "attention.o_proj",
    "norm2": "layernorm_after",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights but a codebook's."""
    yield Entry("class_token", ("beit.embeddings.cls_token",))
    yield Entry("mask_token", ("beit.embeddings.mask_token",))
    if c.position == "learned":
        yield Entry("positions", ("beit.embeddings.position_embeddings",))
    else:
        yield Entry("relative.table", ("beit.shared_position_bias.relative_position_bias_table",))
    yield from linear("patch", "beit.embeddings.patch_embeddings.projection")
    for i in range(c.layers):
        ours, theirs = f"encoder.blocks.{i}", f"beit.layers.{i}"
        names = tuple(f"{theirs}.attention.{name}_proj" for name in "qkv")
        yield Entry(f"{ours}.qkv.weight", tuple(f"{name}.weight" for name in names))
        yield Entry(f"{ours}.q_bias", (f"{names[0]}.bias",))
        yield Entry(f"{ours}.v_bias", (f"{names[2]}.bias",))
        for own, other in LAYER.items():
            yield from linear(f"{ours}.{own}", f"{theirs}.{other}")
        if c.layer_scale is not None:
            yield Entry(f"{ours}.scale1", (f"{theirs}.lambda_1",))
            yield Entry(f"{ours}.scale2", (f"{theirs}.lambda_2",))
    yield from linear("encoder.norm", "layernorm")
    yield from linear("code_head", "lm_head")


def read(config: Any) -> dict[str, Any]:
    """Our parameters from a BeitConfig. Raises ValueError for a network with other positions, norms or sizes."""
    is_learned, is_relative = (
        config.use_absolute_position_embeddings,
        config.use_shared_relative_position_bias,
    )
    wrong = is_learned == is_relative or config.use_relative_position_bias or not config.use_mask_token
    if wrong or not config.use_mean_pooling or config.hidden_act != "gelu":
        raise ValueError(
            "checkpoint: wanted a BEiT with a mask token, one norm at its end (use_mean_pooling), GELU, and either "
            "absolute positions or a relative position bias that layers share"
        )
    if config.intermediate_size != 4 * config.hidden_size:
        raise ValueError(
            f"checkpoint: wanted inner layers of 4 x {config.hidden_size}, got {config.intermediate_size}"
        )
    return {
        "num_codes": config.vocab_size,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "position": "learned" if is_learned else "relative",
        "layer_scale": config.layer_scale_init_value or None,
        "drop_path": config.drop_path_rate,
        "norm_eps": config.layer_norm_eps,
    }


def write(c: Any) -> Any:
    """A BeitConfig of our config."""
    from transformers import BeitConfig

    return BeitConfig(
        vocab_size=c.num_codes,
        image_size=c.image_size,
        patch_size=c.patch_size,
        hidden_size=c.width,
        intermediate_size=4 * c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        use_mask_token=True,
        use_absolute_position_embeddings=c.position == "learned",
        use_shared_relative_position_bias=c.position == "relative",
        layer_scale_init_value=c.layer_scale or 0.0,
        drop_path_rate=c.drop_path,
        layer_norm_eps=c.norm_eps,
    )
