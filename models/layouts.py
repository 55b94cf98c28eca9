"""Names of the same weights in other people's checkpoints, as one table that is read in both directions.

One of our tensors may be several of theirs (fused query, key, value), in another shape (the patch
convolution), or the same tensor under several names (tied weights, stored twice).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PATCH = "vision.patch.weight"
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


@dataclass(frozen=True)
class Entry:
    """`ours` is `theirs`, concatenated along dimension 0 if they are several. Optional: a second name of a
    tied tensor.
    """

    ours: str
    theirs: tuple[str, ...]
    optional: bool = False


def vision(prefix: str, names: Mapping[str, str], num_layers: int) -> Iterator[Entry]:
    """The vision tower under `prefix`; `names` is TIMM or TRANSFORMERS."""
    for whole in ("class_token", "positions"):
        yield Entry(f"vision.{whole}", (prefix + names[whole],))
    for part in ("patch", "norm"):
        yield from _linear(f"vision.{part}", prefix + names[part])
    for i in range(num_layers):
        for part in ("norm1", "qkv", "out", "norm2", "up", "down"):
            yield from _linear(f"vision.blocks.{i}.{part}", prefix + names["blocks"].format(i) + names[part])


def text(prefix: str, num_layers: int, attention: str, cross: bool = True) -> Iterator[Entry]:
    """A BERT under `prefix`; its self-attention is our `attention`: "encoder" or "decoder"."""
    yield Entry("text.words.weight", (f"{prefix}embeddings.word_embeddings.weight",))
    yield Entry("text.positions.weight", (f"{prefix}embeddings.position_embeddings.weight",))
    yield from _linear("text.norm", f"{prefix}embeddings.LayerNorm")
    for i in range(num_layers):
        ours, theirs = f"text.layers.{i}", f"{prefix}encoder.layer.{i}"
        self_names = [f"{theirs}.attention.self.{x}" for x in ("query", "key", "value")]
        yield from _linear(f"{ours}.{attention}.qkv", *self_names)
        yield from _linear(f"{ours}.{attention}.out", f"{theirs}.attention.output.dense")
        yield from _linear(f"{ours}.{attention}.norm", f"{theirs}.attention.output.LayerNorm")
        if cross:
            image_names = [f"{theirs}.crossattention.self.{x}" for x in ("key", "value")]
            yield from _linear(f"{ours}.cross.q", f"{theirs}.crossattention.self.query")
            yield from _linear(f"{ours}.cross.kv", *image_names)
            yield from _linear(f"{ours}.cross.out", f"{theirs}.crossattention.output.dense")
            yield from _linear(f"{ours}.cross.norm", f"{theirs}.crossattention.output.LayerNorm")
        yield from _linear(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
        yield from _linear(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
        yield from _linear(f"{ours}.feed_forward.norm", f"{theirs}.output.LayerNorm")


def lm_head(prefix: str) -> Iterator[Entry]:
    """BERT's prediction head under `prefix`; its matrix is the word embedding, stored again or not."""
    yield from _linear("lm_head.dense", f"{prefix}transform.dense")
    yield from _linear("lm_head.norm", f"{prefix}transform.LayerNorm")
    yield Entry("lm_head.bias", (f"{prefix}bias",))
    yield Entry("lm_head.bias", (f"{prefix}decoder.bias",), optional=True)
    yield Entry("text.words.weight", (f"{prefix}decoder.weight",), optional=True)


def heads() -> Iterator[Entry]:
    for name in ("vision_proj", "text_proj", "itm_head"):
        yield from _linear(name, name)


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


def to_ours(entries: Sequence[Entry], theirs: Mapping[str, Tensor], ignored: str) -> dict[str, Tensor]:
    """Our tensors. ValueError lists every name missing, and every unknown one that `ignored` (regex) does
    not match.
    """
    missing = [n for e in entries if not e.optional for n in e.theirs if n not in theirs]
    known = {n for e in entries for n in e.theirs}
    unknown = [n for n in theirs if n not in known and not re.search(ignored, n)]
    if missing or unknown:
        raise ValueError(
            "the checkpoint does not fit the model: "
            + "; ".join(_listed(("missing", missing), ("unknown", unknown)))
        )
    ours: dict[str, Tensor] = {}
    for entry in entries:
        if entry.theirs[0] not in theirs:
            continue
        value = (
            torch.cat([theirs[n] for n in entry.theirs]) if len(entry.theirs) > 1 else theirs[entry.theirs[0]]
        )
        value = value.flatten(1) if entry.ours == PATCH else value
        if entry.ours in ours and not torch.equal(ours[entry.ours], value):
            raise ValueError(
                f"checkpoint: {', '.join(entry.theirs)} must equal the parameter it shares weights with, but differs"
            )
        ours[entry.ours] = value
    return ours


def to_theirs(entries: Sequence[Entry], ours: Mapping[str, Tensor], patch_size: int) -> dict[str, Tensor]:
    """Their tensors, second names of tied ones included."""
    theirs: dict[str, Tensor] = {}
    for entry in entries:
        value = ours[entry.ours]
        if entry.ours == PATCH:
            value = value.unflatten(1, (3, patch_size, patch_size))
        num = len(entry.theirs)
        theirs |= zip(entry.theirs, value.chunk(num) if num > 1 else (value,), strict=True)
    return theirs


def _linear(ours: str, *theirs: str) -> Iterator[Entry]:
    for kind in ("weight", "bias"):
        yield Entry(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs))


def _listed(*kinds: tuple[str, Sequence[str]]) -> list[str]:
    return [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds if names]
