"""ViT in transformers (`ViTForImageClassification`), whose head is linear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlpipe.models.layouts.table import Entry, Layout, layers, linear

QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
LAYER = {
    "norm1": "layernorm_before",
    "out": "attention.o_proj",
    "norm2": "layernorm_after",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights."""
    yield from encoder(c)
    yield from linear("classifier", "classifier")


def encoder(c: Any) -> Iterator[Entry]:
    """The table of patches and encoder, which MAE shares."""
    yield Entry("patches.class_token", ("vit.embeddings.cls_token",))
    yield Entry("patches.positions", ("vit.embeddings.position_embeddings",))
    yield from linear("patches.patch", "vit.embeddings.patch_embeddings.projection")
    yield from layers("vision.blocks", "vit.layers", c.layers, QKV, LAYER)
    yield from linear("vision.norm", "vit.layernorm")


def read(config: Any) -> dict[str, Any]:
    """Our parameters from a ViTConfig. Raises ValueError for a network other than the paper's."""
    other = config.hidden_act != "gelu" or not config.qkv_bias
    if other or config.intermediate_size != 4 * config.hidden_size or config.num_channels != 3:
        raise ValueError(
            "checkpoint: this ViT is not the paper's, which has GELU, a bias of queries, keys and values, inner layers of 4 "
            f"times the width and 3 colours; it has {config.hidden_act}, {config.qkv_bias}, {config.intermediate_size} of "
            f"{config.hidden_size}, {config.num_channels}"
        )
    return {
        "num_classes": config.num_labels,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "head": "linear",
        "dropout": config.hidden_dropout_prob,
        "norm_eps": config.layer_norm_eps,
    }


def write(c: Any) -> Any:
    """A ViTConfig of our config."""
    from transformers import ViTConfig

    return ViTConfig(
        num_labels=c.num_classes,
        image_size=c.image_size,
        patch_size=c.patch_size,
        hidden_size=c.width,
        intermediate_size=4 * c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        hidden_dropout_prob=c.dropout,
        layer_norm_eps=c.norm_eps,
    )


class VitLayout(Layout):
    """As `Layout`, for models with a linear head."""

    def check(self, model: Any, kind: str | None) -> str:
        kind = super().check(model, kind)
        if model.config.head != "linear":
            raise ValueError(
                "export: transformers' ViTForImageClassification has no hidden layer before the classes (head: mlp)"
            )
        return kind


LAYOUT = VitLayout(
    classes={"classifier": "ViTForImageClassification"}, entries=entries, read=read, write=write
)
