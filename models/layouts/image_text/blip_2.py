"""BLIP-2 in transformers: `Blip2ForImageTextRetrieval` is the first stage without its word head,
`Blip2ForConditionalGeneration` the second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from vlpipe.models.blocks.frozen.language_model import LanguageModel, config_of
from vlpipe.models.layouts.table import Entry, Layout, layers, linear
from vlpipe.models.layouts.text import llm

VISION = {
    "norm1": "layer_norm1",
    "out": "self_attn.projection",
    "norm2": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
NORM_EPS = 1e-12  # of the Q-Former


def shared(c: Any) -> Iterator[Entry]:
    """The image encoder and the queries' side of the Q-Former."""
    tower, former = "vision_model", "qformer.encoder.layer"
    yield Entry("vision.patches.class_token", (f"{tower}.embeddings.class_embedding",))
    yield Entry("vision.patches.positions", (f"{tower}.embeddings.position_embedding",))
    yield from linear("vision.patches.patch", f"{tower}.embeddings.patch_embedding")
    qkv = ("self_attn.qkv",)
    yield from layers("vision.encoder.blocks", f"{tower}.encoder.layers", c.vision_layers, qkv, VISION)
    yield from linear("vision.encoder.norm", f"{tower}.post_layernorm")
    yield Entry("qformer.queries", ("query_tokens",))
    yield from linear("qformer.norm", "qformer.layernorm")
    for i in range(c.layers):
        ours, theirs = f"qformer.layers.{i}", f"{former}.{i}"
        yield from attention(f"{ours}.attention", f"{theirs}.attention", "qkv", ("query", "key", "value"))
        if i % c.cross_every == 0:
            yield from linear(f"{ours}.cross.q", f"{theirs}.crossattention.attention.query")
            yield from attention(f"{ours}.cross", f"{theirs}.crossattention", "kv", ("key", "value"))
        yield from feed_forward(f"{ours}.feed_forward", theirs, "_query")


def attention(ours: str, theirs: str, fused: str, names: tuple[str, ...]) -> Iterator[Entry]:
    yield from linear(f"{ours}.{fused}", *(f"{theirs}.attention.{name}" for name in names))
    yield from linear(f"{ours}.out", f"{theirs}.output.dense")
    yield from linear(f"{ours}.norm", f"{theirs}.output.LayerNorm")


def feed_forward(ours: str, theirs: str, kind: str) -> Iterator[Entry]:
    yield from linear(f"{ours}.up", f"{theirs}.intermediate{kind}.dense")
    yield from linear(f"{ours}.down", f"{theirs}.output{kind}.dense")
    yield from linear(f"{ours}.norm", f"{theirs}.output{kind}.LayerNorm")


def first_stage(c: Any, kind: str) -> Iterator[Entry]:
    """The table of the first stage."""
    yield from shared(c)
    yield Entry("text.words.words.weight", ("embeddings.word_embeddings.weight",))
    yield Entry("text.words.positions.weight", ("embeddings.position_embeddings.weight",))
    for i in range(c.layers):
        yield from feed_forward(f"text.feed_forward.{i}", f"qformer.encoder.layer.{i}", "")
    yield from linear("image_proj", "vision_projection")
    yield from linear("text_proj", "text_projection")
    yield from linear("match_head", "itm_head")


def second_stage(c: Any, kind: str) -> Iterator[Entry]:
    """The table of the second stage."""
    yield from shared(c)
    yield from linear("projection", "language_projection")
    with torch.device("meta"):
        net = LanguageModel(c.llm, 0, 0).net
    yield from llm.entries(net, {"": "language_model."})


def read(config: Any) -> dict[str, Any]:
    """Our parameters, but for those of texts, from a Blip2Config. Raises ValueError for a network not as published."""
    vision, former = config.vision_config, config.qformer_config
    found = (vision.qkv_bias, former.hidden_act, former.layer_norm_eps)
    if found != (True, "gelu", NORM_EPS):
        raise ValueError(
            "checkpoint: BLIP-2 as published has a bias of queries, keys and values, and a Q-Former with GELU and norms of "
            f"1e-12; this one has {found}"
        )
    return {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "vision_width": vision.hidden_size,
        "vision_layers": vision.num_hidden_layers,
        "vision_heads": vision.num_attention_heads,
        "vision_mlp": vision.intermediate_size,
        "vision_norm_eps": vision.layer_norm_eps,
        "activation": vision.hidden_act,
        "queries": config.num_query_tokens,
        "width": former.hidden_size,
        "layers": former.num_hidden_layers,
        "heads": former.num_attention_heads,
        "cross_every": former.cross_attention_frequency,
        "mlp_width": former.intermediate_size,
        "dropout": former.hidden_dropout_prob,
        "init_std": former.initializer_range,
    }


def read_first(config: Any) -> dict[str, Any]:
    """The text is BERT's, whose vocabulary [DEC] ends."""
    former = config.qformer_config
    return {
        **read(config),
        "vocab_size": former.vocab_size,
        "pad": former.pad_token_id,
        "start": 101,
        "end": 102,
        "dec": former.vocab_size - 1,
        "max_text_length": former.max_position_embeddings,
        "embed_dim": config.image_text_hidden_size,
        "generates": False,
    }


def read_second(config: Any) -> dict[str, Any]:
    text = config.text_config
    return {
        **read(config),
        "llm": llm.config_of(text),
        **llm.tokens_of(text),
        "image_token": config.image_token_index,
    }


def write(c: Any, text: dict[str, Any], **more: Any) -> Any:
    """A Blip2Config of our config. text: of its Q-Former."""
    from transformers import Blip2Config

    vision = {
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_size": c.vision_width,
        "intermediate_size": 4 * c.vision_width if c.vision_mlp is None else c.vision_mlp,
        "num_hidden_layers": c.vision_layers,
        "num_attention_heads": c.vision_heads,
        "layer_norm_eps": c.vision_norm_eps,
        "hidden_act": c.activation,
    }
    former = {
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": 4 * c.width if c.mlp_width is None else c.mlp_width,
        "cross_attention_frequency": c.cross_every,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.dropout,
        "layer_norm_eps": NORM_EPS,
        "initializer_range": c.init_std,
    }
    return Blip2Config(
        vision_config=vision, qformer_config={**former, **text}, num_query_tokens=c.queries, **more
    )


def write_first(c: Any) -> Any:
    text = {
        "vocab_size": c.vocab_size,
        "pad_token_id": c.pad,
        "max_position_embeddings": c.max_text_length,
        "use_qformer_text_input": True,
    }
    return write(c, text, image_text_hidden_size=c.embed_dim)


def write_second(c: Any) -> Any:
    language = config_of(c.llm, c.vocab_size)
    return write(
        c, {}, text_config=language.to_dict(), image_token_index=llm.image_token(c, language.vocab_size)
    )


class Blip2Layout(Layout):
    """As `Layout`, for image encoders of EVA-CLIP's form, and a second stage with a token for the image."""

    def check(self, model: Any, kind: str | None) -> str:
        if model.config.clip_vision:
            raise ValueError(
                "export: transformers has no BLIP-2 whose image encoder has CLIP's form (clip_vision)"
            )
        if hasattr(model.config, "llm"):
            llm.image_token(model.config, model.llm.vocab_size)
        return super().check(model, kind)


LAYOUTS = {
    "Blip2": Blip2Layout(
        classes={"retrieval": "Blip2ForImageTextRetrieval"},
        entries=first_stage,
        read=read_first,
        write=write_first,
    ),
    "Blip2Llm": Blip2Layout(
        classes={"captioner": "Blip2ForConditionalGeneration"},
        entries=second_stage,
        read=read_second,
        write=write_second,
    ),
}
