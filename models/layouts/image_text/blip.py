"""Names of BLIP's weights in the authors' files and in transformers, as tables that are read in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vlpipe.models.layouts.table import Entry, linear

TIMM = {
    "class_token": "cls_token",
    "positions": "pos_embed",
    "patch": "patch_embed.proj",
    "norm": "norm",
    "blocks": "blocks.{}.",
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "out": "attn.proj",
    "norm2": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
TRANSFORMERS = {
    "class_token": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding",
    "patch": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "blocks": "encoder.layers.{}.",
    "norm1": "layer_norm1",
    "qkv": "self_attn.qkv",
    "out": "self_attn.projection",
    "norm2": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def vision(prefix: str, names: Mapping[str, str], num_layers: int) -> Iterator[Entry]:
    """The vision tower under `prefix`; `names` is TIMM or TRANSFORMERS."""
    for whole in ("class_token", "positions"):
        yield Entry(f"vision.{whole}", (prefix + names[whole],))
    for part in ("patch", "norm"):
        yield from linear(f"vision.{part}", prefix + names[part])
    for i in range(num_layers):
        for part in ("norm1", "qkv", "out", "norm2", "up", "down"):
            yield from linear(f"vision.blocks.{i}.{part}", prefix + names["blocks"].format(i) + names[part])


def text(prefix: str, num_layers: int, attention: str, cross: bool = True) -> Iterator[Entry]:
    """A BERT under `prefix`; its self-attention is our `attention`: "encoder" or "decoder"."""
    yield Entry("text.words.weight", (f"{prefix}embeddings.word_embeddings.weight",))
    yield Entry("text.positions.weight", (f"{prefix}embeddings.position_embeddings.weight",))
    yield from linear("text.norm", f"{prefix}embeddings.LayerNorm")
    for i in range(num_layers):
        ours, theirs = f"text.layers.{i}", f"{prefix}encoder.layer.{i}"
        self_names = [f"{theirs}.attention.self.{x}" for x in ("query", "key", "value")]
        yield from linear(f"{ours}.{attention}.qkv", *self_names)
        yield from linear(f"{ours}.{attention}.out", f"{theirs}.attention.output.dense")
        yield from linear(f"{ours}.{attention}.norm", f"{theirs}.attention.output.LayerNorm")
        if cross:
            image_names = [f"{theirs}.crossattention.self.{x}" for x in ("key", "value")]
            yield from linear(f"{ours}.cross.q", f"{theirs}.crossattention.self.query")
            yield from linear(f"{ours}.cross.kv", *image_names)
            yield from linear(f"{ours}.cross.out", f"{theirs}.crossattention.output.dense")
            yield from linear(f"{ours}.cross.norm", f"{theirs}.crossattention.output.LayerNorm")
        yield from linear(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
        yield from linear(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
        yield from linear(f"{ours}.feed_forward.norm", f"{theirs}.output.LayerNorm")


def lm_head(prefix: str) -> Iterator[Entry]:
    """BERT's prediction head under `prefix`; its matrix is the word embedding, stored again or not."""
    yield from linear("lm_head.dense", f"{prefix}transform.dense")
    yield from linear("lm_head.norm", f"{prefix}transform.LayerNorm")
    yield Entry("lm_head.bias", (f"{prefix}bias",))
    yield Entry("lm_head.bias", (f"{prefix}decoder.bias",), optional=True)
    yield Entry("text.words.weight", (f"{prefix}decoder.weight",), optional=True)


def heads() -> Iterator[Entry]:
    for name in ("vision_proj", "text_proj", "itm_head"):
        yield from linear(name, name)


def original(num_vision: int, num_text: int, parts: str) -> list[Entry]:
    """Salesforce BLIP .pth: pretraining, captioner (`BLIP_Decoder`) or retrieval (`BLIP_Retrieval`,
    `BLIP_ITM`).
    """
    entries = list(vision("visual_encoder.", TIMM, num_vision))
    if parts in ("all", "captioner"):
        entries += text("text_decoder.bert.", num_text, "decoder")
        entries += lm_head("text_decoder.cls.predictions.")
    if parts in ("all", "retrieval"):
        entries += text("text_encoder.", num_text, "encoder")
        entries += [*heads(), Entry("temp", ("temp",), optional=True)]
    return entries


def transformers(num_vision: int, num_text: int, parts: str) -> list[Entry]:
    """`BlipForConditionalGeneration` (captioner) or `BlipForImageTextRetrieval` (retrieval)."""
    entries = list(vision("vision_model.", TRANSFORMERS, num_vision))
    if parts == "captioner":
        entries += text("text_decoder.bert.", num_text, "decoder")
        return [*entries, *lm_head("text_decoder.cls.predictions.")]
    return [*entries, *text("text_encoder.", num_text, "encoder"), *heads()]
