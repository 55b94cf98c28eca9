"""LLaVA in transformers: `LlavaForConditionalGeneration`, and with tiles `LlavaNextForConditionalGeneration`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vlpipe.models.blocks.frozen.language_model import LanguageModel, config_of
from vlpipe.models.blocks.frozen.lora import merged
from vlpipe.models.layouts.image_text.clip.tower import vision_tower
from vlpipe.models.layouts.table import Entry, Layout, linear
from vlpipe.models.layouts.text import llm
from vlpipe.models.weights.published import fill

WHOLE, TILED = "llava", "next"


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights."""
    tower, projector = "model.vision_tower", "model.multi_modal_projector"
    yield from vision_tower(c, tower, part="vision.", blocks="vision.encoder")
    yield from linear("projector.0", f"{projector}.linear_1")
    yield from linear("projector.2", f"{projector}.linear_2")
    if kind == TILED:
        yield Entry("newline", ("model.image_newline",))
    with torch.device("meta"):
        net = LanguageModel(c.llm, c.vocab_size, c.end).net
    yield from llm.entries(net, {f"{net.base_model_prefix}.": "model.language_model.", "": ""})


def read(config: Any) -> dict[str, Any]:
    """Our parameters from a LlavaConfig or LlavaNextConfig. Raises ValueError for another network than the published."""
    vision, text = config.vision_config, config.text_config
    found = (
        vision.model_type,
        config.vision_feature_select_strategy,
        config.projector_hidden_act,
        config.multimodal_projector_bias,
    )
    layer = config.vision_feature_layer
    if found != ("clip_vision_model", "default", "gelu", True) or not isinstance(layer, int) or layer >= 0:
        raise ValueError(
            "checkpoint: LLaVA as published reads the patches of a layer, counted from the last, of CLIP's image encoder, "
            f"and has a projector with GELU and biases; this one has {found}, layer {layer}"
        )
    points = getattr(config, "image_grid_pinpoints", None)
    return {
        "llm": llm.config_of(text),
        **llm.tokens_of(text),
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "vision_width": vision.hidden_size,
        "vision_layers": vision.num_hidden_layers,
        "vision_heads": vision.num_attention_heads,
        "vision_mlp": vision.intermediate_size,
        "vision_norm_eps": vision.layer_norm_eps,
        "activation": vision.hidden_act,
        "skip": -1 - layer,
        "grids": points and [[side // vision.image_size for side in point] for point in points],
        "max_text_length": text.max_position_embeddings,
        "image_token": config.image_token_index,
    }


def write(c: Any) -> Any:
    """A LlavaConfig or LlavaNextConfig of our config."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaNextConfig

    language = config_of(c.llm, c.vocab_size)
    vision = CLIPVisionConfig(
        image_size=c.image_size,
        patch_size=c.patch_size,
        hidden_size=c.vision_width,
        num_hidden_layers=c.vision_layers,
        num_attention_heads=c.vision_heads,
        intermediate_size=4 * c.vision_width if c.vision_mlp is None else c.vision_mlp,
        layer_norm_eps=c.vision_norm_eps,
        hidden_act=c.activation,
    )
    shared: dict[str, Any] = {
        "vision_config": vision.to_dict(),
        "text_config": language.to_dict(),
        "vision_feature_layer": -1 - c.skip,
        "image_token_index": llm.image_token(c, language.vocab_size),
    }
    if not c.grids:
        return LlavaConfig(**shared, image_seq_length=(c.image_size // c.patch_size) ** 2)
    points = [[c.image_size * side for side in grid] for grid in c.grids]
    return LlavaNextConfig(**shared, image_grid_pinpoints=points)


class LlavaLayout(Layout):
    """As `Layout`; adapters are merged into the language model."""

    def check(self, model: Any, kind: str | None) -> str:
        kind = kind or (TILED if model.config.grids else WHOLE)
        if (kind == TILED) != bool(model.config.grids):
            raise ValueError("export: `next` is for a model with `grids`, and `llava` for one without")
        llm.image_token(model.config, model.llm.vocab_size)
        return super().check(model, kind)

    def export(self, model: Any, folder: Path, kind: str | None) -> None:
        kind = self.check(model, kind)
        if model.config.lora is not None:
            plain = type(model)(**{**vars(model.config), "lora": None})
            fill(plain, merged(model), "export")
            model = plain
        super().export(model, folder, kind)


LAYOUT = LlavaLayout(
    classes={WHOLE: "LlavaForConditionalGeneration", TILED: "LlavaNextForConditionalGeneration"},
    entries=entries,
    read=read,
    write=write,
)
