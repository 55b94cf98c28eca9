"""LXMERT in transformers (`LxmertForPreTraining`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlpipe.models.layouts.table import Entry, Layout, linear

KINDS = ("obj", "attr", "feat")


def attention(ours: str, theirs: str, inner: str) -> Iterator[Entry]:
    """A self-attention sublayer; our query, key and value are one matrix. inner: their name of the attention itself."""
    yield from linear(f"{ours}.qkv", *(f"{theirs}.{inner}.{x}" for x in ("query", "key", "value")))
    yield from linear(f"{ours}.out", f"{theirs}.output.dense")
    yield from linear(f"{ours}.norm", f"{theirs}.output.LayerNorm")


def feed_forward(ours: str, up: str, down: str) -> Iterator[Entry]:
    """A feed-forward sublayer."""
    yield from linear(f"{ours}.up", f"{up}.dense")
    yield from linear(f"{ours}.down", f"{down}.dense")
    yield from linear(f"{ours}.norm", f"{down}.LayerNorm")


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights."""
    theirs = "lxmert.embeddings"
    for name in ("word", "position", "token_type"):
        own = {"word": "words", "position": "positions", "token_type": "types"}[name]
        yield Entry(f"words.{own}.weight", (f"{theirs}.{name}_embeddings.weight",))
    yield from linear("words.norm", f"{theirs}.LayerNorm")
    for name, other in (("feat", "visn"), ("box", "box")):
        yield from linear(f"regions.{name}", f"lxmert.encoder.visn_fc.{other}_fc")
        yield from linear(f"regions.{name}_norm", f"lxmert.encoder.visn_fc.{other}_layer_norm")
    for name, other, num in (
        ("language", "layer", c.language_layers),
        ("objects", "r_layers", c.object_layers),
    ):
        for i in range(num):
            layer = f"lxmert.encoder.{other}.{i}"
            yield from attention(f"{name}.{i}.attention", f"{layer}.attention", "self")
            yield from feed_forward(f"{name}.{i}.feed_forward", f"{layer}.intermediate", f"{layer}.output")
    for i in range(c.cross_layers):
        layer, own = f"lxmert.encoder.x_layers.{i}", f"cross.{i}"
        shared = f"{layer}.visual_attention"
        yield from linear(f"{own}.cross.q", f"{shared}.att.query")
        yield from linear(f"{own}.cross.kv", f"{shared}.att.key", f"{shared}.att.value")
        yield from linear(f"{own}.cross.out", f"{shared}.output.dense")
        yield from linear(f"{own}.cross.norm", f"{shared}.output.LayerNorm")
        for name, other in (("words", "lang"), ("regions", "visn")):
            yield from attention(f"{own}.{name}.attention", f"{layer}.{other}_self_att", "self")
            yield from feed_forward(
                f"{own}.{name}.feed_forward", f"{layer}.{other}_inter", f"{layer}.{other}_output"
            )
    yield from linear("pooler.dense", "lxmert.pooler.dense")
    yield from linear("match_head", "cls.seq_relationship")
    yield from linear("word_transform.dense", "cls.predictions.transform.dense")
    yield from linear("word_transform.norm", "cls.predictions.transform.LayerNorm")
    yield Entry("words.words.weight", ("cls.predictions.decoder.weight",), optional=True)
    yield Entry("word_bias", ("cls.predictions.bias",))
    yield from linear("region_transform.dense", "obj_predict_head.transform.dense")
    yield from linear("region_transform.norm", "obj_predict_head.transform.LayerNorm")
    for name in KINDS:
        yield from linear(f"region_heads.{name}", f"obj_predict_head.decoder_dict.{name}")
    if c.num_answers:
        for i in (0, 2, 3):
            yield from linear(f"answer_head.{i}", f"answer_head.logit_fc.{i}")


def read(config: Any) -> dict[str, Any]:
    """Our parameters from an LxmertConfig. Raises ValueError for one whose pretraining leaves out a loss of regions."""
    lacking = [name for name in KINDS if not getattr(config, f"visual_{name}_loss")]
    if lacking or not config.task_obj_predict:
        names = ", ".join(lacking) or "all (task_obj_predict is false)"
        raise ValueError(f"checkpoint: this LXMERT lacks heads of regions that a model here has: {names}")
    return {
        "vocab_size": config.vocab_size,
        "feat_dim": config.visual_feat_dim,
        "num_objects": config.num_object_labels,
        "num_attributes": config.num_attr_labels,
        "num_answers": config.num_qa_labels if config.task_qa else 0,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "language_layers": config.l_layers,
        "object_layers": config.r_layers,
        "cross_layers": config.x_layers,
        "max_text_length": config.max_position_embeddings,
        "dropout": config.hidden_dropout_prob,
    }


def write(c: Any) -> Any:
    """An LxmertConfig of our config. Raises ValueError for a model without cross-attention, which they lack."""
    from transformers import LxmertConfig

    if not c.cross_attention:
        raise ValueError(
            "export: transformers has no LXMERT without cross-attention (cross_attention: false)"
        )
    return LxmertConfig(
        vocab_size=c.vocab_size,
        visual_feat_dim=c.feat_dim,
        num_object_labels=c.num_objects,
        num_attr_labels=c.num_attributes,
        num_qa_labels=c.num_answers,
        task_qa=c.num_answers > 0,
        hidden_size=c.width,
        intermediate_size=4 * c.width,
        num_attention_heads=c.heads,
        l_layers=c.language_layers,
        r_layers=c.object_layers,
        x_layers=c.cross_layers,
        max_position_embeddings=c.max_text_length,
        hidden_dropout_prob=c.dropout,
        attention_probs_dropout_prob=c.dropout,
    )


LAYOUT = Layout(classes={"pretraining": "LxmertForPreTraining"}, entries=entries, read=read, write=write)
