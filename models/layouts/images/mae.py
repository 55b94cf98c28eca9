"""MAE in transformers (`ViTMAEForPreTraining`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlpipe.models.layouts.images.vit import LAYER, QKV, encoder
from vlpipe.models.layouts.table import Entry, Layout, layers, linear


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights. Positions are the same fixed table in both."""
    yield from encoder(c)
    yield from linear("to_decoder", "decoder.decoder_embed")
    yield Entry("mask_token", ("decoder.mask_token",))
    yield Entry("decoder_positions", ("decoder.decoder_pos_embed",))
    yield from layers("decoder.blocks", "decoder.decoder_layers", c.decoder_layers, QKV, LAYER)
    yield from linear("decoder.norm", "decoder.decoder_norm")
    yield from linear("to_pixels", "decoder.decoder_pred")


def read(config: Any) -> dict[str, Any]:
    """Our parameters from a ViTMAEConfig."""
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "decoder_width": config.decoder_hidden_size,
        "decoder_layers": config.decoder_num_hidden_layers,
        "decoder_heads": config.decoder_num_attention_heads,
        "norm_eps": config.layer_norm_eps,
    }


def write(c: Any) -> Any:
    """A ViTMAEConfig of our config. Raises ValueError for a model with mask tokens in the encoder, which they lack."""
    from transformers import ViTMAEConfig

    if c.encode_masked:
        raise ValueError(
            "export: transformers' ViTMAE has no mask tokens in the encoder (encode_masked: true)"
        )
    return ViTMAEConfig(
        image_size=c.image_size,
        patch_size=c.patch_size,
        hidden_size=c.width,
        intermediate_size=4 * c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        decoder_hidden_size=c.decoder_width,
        decoder_intermediate_size=4 * c.decoder_width,
        decoder_num_hidden_layers=c.decoder_layers,
        decoder_num_attention_heads=c.decoder_heads,
        layer_norm_eps=c.norm_eps,
        norm_pix_loss=True,
    )


LAYOUT = Layout(classes={"pretraining": "ViTMAEForPreTraining"}, entries=entries, read=read, write=write)
