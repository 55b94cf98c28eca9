"""UniVL's weights as published (https://github.com/microsoft/UniVL): `univl.pretrained.bin`, and those finetuned from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from vlpipe.models.layouts.table import Entry, layers, linear
from vlpipe.models.layouts.text.bert import LAYER, QKV, encoder
from vlpipe.models.layouts.video.state import State, StateLayout

HEAD_WIDTH = 64
MAX_WORDS = 48  # of a text in its pretraining, to which all are padded
SELF, CROSS = "slf_attn", "enc_attn"
DECODER = {
    "attention.out": f"{SELF}.output.dense",
    "attention.norm": f"{SELF}.output.LayerNorm",
    "cross.q": f"{CROSS}.att.query",
    "cross.out": f"{CROSS}.output.dense",
    "cross.norm": f"{CROSS}.output.LayerNorm",
    **{ours: theirs for ours, theirs in LAYER.items() if ours.startswith("feed_forward")},
}
NOT_KEPT = ("word_head.", "frame_head.transform.", "frame_head.bias")  # of files that were finetuned


def entries(config: Any) -> Iterator[Entry]:
    yield from encoder("text", "bert", config.text_layers)
    for name, theirs, num in (
        ("video", "visual", config.video_layers),
        ("cross", "cross", config.cross_layers),
    ):
        yield Entry(f"{name}.positions.weight", (f"{theirs}.embeddings.position_embeddings.weight",))
        yield from linear(f"{name}.norm", f"{theirs}.embeddings.LayerNorm")
        yield from layers(
            f"{name}.blocks", f"{theirs}.encoder.layer", num, QKV, LAYER, our_qkv="attention.qkv"
        )
    yield Entry("cross.types.weight", ("cross.embeddings.token_type_embeddings.weight",))
    yield from linear("video_norm", "normalize_video.visual_norm2d")
    yield from linear("pooler.dense", "cross.pooler.dense")
    yield from linear("similarity", "similarity_dense")
    yield from _decoder(config.decoder_layers)
    heads = [
        *_head("word_head", "cls"),
        *linear("frame_head.transform.dense", _predictions("cls_visual.transform.dense")),
    ]
    heads += linear("frame_head.transform.norm", _predictions("cls_visual.transform.LayerNorm"))
    heads.append(Entry("frame_head.bias", ("cls_visual.predictions.bias",)))
    yield from (replace(one, optional=True) for one in heads)
    # the matrix of features is in the file twice, that of words four times, that of positions twice
    for ours in ("video.proj", "frame_head.proj"):
        yield from linear(ours, "visual.embeddings.word_embeddings")
    yield Entry("frame_head.proj.weight", ("cls_visual.predictions.weight",), optional=True)
    for ours in ("word_head.decoder.weight", "decoder_head.decoder.weight", "decoder.embed.words.weight"):
        yield Entry(ours, ("bert.embeddings.word_embeddings.weight",))
    yield Entry("word_head.decoder.weight", ("cls.predictions.decoder.weight",), optional=True)


def _decoder(num_layers: int) -> Iterator[Entry]:
    at = "decoder.embeddings"
    yield Entry("decoder.embed.words.weight", (f"{at}.word_embeddings.weight",))
    yield Entry("decoder.embed.positions.weight", (f"{at}.position_embeddings.weight",))
    yield from linear("decoder.embed.norm", f"{at}.LayerNorm")
    qkv = [f"{SELF}.att.{name}" for name in ("query", "key", "value")]
    ours, theirs = "decoder.blocks", "decoder.decoder.layer"
    yield from layers(ours, theirs, num_layers, qkv, DECODER, our_qkv="attention.qkv")
    for i in range(num_layers):
        keys_values = [f"{theirs}.{i}.{CROSS}.att.{name}" for name in ("key", "value")]
        yield from linear(f"{ours}.{i}.cross.kv", *keys_values)
    yield from _head("decoder_head", "decoder.classifier.cls")
    yield Entry("decoder_head.decoder.weight", ("decoder.classifier.cls.predictions.decoder.weight",))


def _head(ours: str, theirs: str) -> Iterator[Entry]:
    yield from linear(f"{ours}.dense", f"{theirs}.predictions.transform.dense")
    yield from linear(f"{ours}.norm", f"{theirs}.predictions.transform.LayerNorm")
    yield Entry(f"{ours}.decoder.bias", (f"{theirs}.predictions.bias",))


def _predictions(name: str) -> str:
    head, _, rest = name.partition(".")
    return f"{head}.predictions.{rest}"


def read(state: State) -> dict[str, Any]:
    words, width = state["bert.embeddings.word_embeddings.weight"].shape
    num = {
        f"{ours}_layers": _count(state, theirs)
        for ours, theirs in (
            ("text", "bert.encoder.layer"),
            ("video", "visual.encoder.layer"),
            ("cross", "cross.encoder.layer"),
            ("decoder", "decoder.decoder.layer"),
        )
    }
    return {
        **num,
        "vocab_size": words,
        "width": width,
        "heads": max(1, width // HEAD_WIDTH),
        "feat_dim": len(state["normalize_video.visual_norm2d.weight"]),
        "max_text_length": len(state["bert.embeddings.position_embeddings.weight"]),
        "frames_at": min(MAX_WORDS, len(state["bert.embeddings.position_embeddings.weight"])),
        "max_frames": len(state["visual.embeddings.position_embeddings.weight"]),
    }


def _count(state: State, prefix: str) -> int:
    found = {
        name.removeprefix(f"{prefix}.").partition(".")[0] for name in state if name.startswith(f"{prefix}.")
    }
    return len(found)


def renamed(name: str) -> str:
    """Older files have TensorFlow's names of the two vectors of a norm."""
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))


def more(state: State, model: Any) -> dict[str, Tensor]:
    """Heads that files finetuned for captions or retrieval do not have: they stay as they start."""
    own = model.state_dict()
    lacks = "cls.predictions.bias" not in state
    return {
        n: v for n, v in own.items() if lacks and n.startswith(NOT_KEPT) and n != "word_head.decoder.weight"
    }


LAYOUT = StateLayout(
    entries=entries,
    read=read,
    more=more,
    ignored=r"^(bert|visual)\.pooler\.|\.position_ids$",
    renamed=renamed,
)
