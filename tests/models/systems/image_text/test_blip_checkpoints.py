from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vlpipe.models.generation.beam import beam
from vlpipe.models.generation.generate import sample
from vlpipe.models.interface.batch import Batch
from vlpipe.models.layouts.image_text import blip as layouts
from vlpipe.models.layouts.table import to_theirs
from vlpipe.models.systems.image_text.blip.checkpoints import (
    export_captioner,
    export_retrieval,
    init_bert,
    init_vit,
    read_tensors,
)
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.systems.image_text.blip.vision import resize_positions
from vlpipe.models.tokenizer import Tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"
Make = Callable[..., Any]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def assert_equal_outputs(a: Blip, b: Blip, batch: Batch, *what: str) -> None:
    ids, mask = batch.streams["text"].data, batch.streams["text"].mask
    for name in what:
        out = [
            getattr(m, name)(ids, mask, m.encode_image(batch.streams["image"].data))
            if name in ("match_logits", "lm_logits")
            else m.embed_text(ids, mask) @ m.embed_image(batch.streams["image"].data).t()
            for m in (a, b)
        ]
        torch.testing.assert_close(out[0], out[1], **CLOSE)


# Names as published by Salesforce, timm and Google; `{i}` is the layer.
ORIGINAL_VISION = """cls_token pos_embed patch_embed.proj.weight patch_embed.proj.bias norm.weight norm.bias
blocks.{i}.norm1.weight blocks.{i}.norm1.bias blocks.{i}.attn.qkv.weight blocks.{i}.attn.qkv.bias
blocks.{i}.attn.proj.weight blocks.{i}.attn.proj.bias blocks.{i}.norm2.weight blocks.{i}.norm2.bias
blocks.{i}.mlp.fc1.weight blocks.{i}.mlp.fc1.bias blocks.{i}.mlp.fc2.weight blocks.{i}.mlp.fc2.bias"""
BERT = """embeddings.word_embeddings.weight embeddings.position_embeddings.weight
embeddings.LayerNorm.weight embeddings.LayerNorm.bias
encoder.layer.{i}.attention.self.query.weight encoder.layer.{i}.attention.self.query.bias
encoder.layer.{i}.attention.self.key.weight encoder.layer.{i}.attention.self.key.bias
encoder.layer.{i}.attention.self.value.weight encoder.layer.{i}.attention.self.value.bias
encoder.layer.{i}.attention.output.dense.weight encoder.layer.{i}.attention.output.dense.bias
encoder.layer.{i}.attention.output.LayerNorm.weight encoder.layer.{i}.attention.output.LayerNorm.bias
encoder.layer.{i}.intermediate.dense.weight encoder.layer.{i}.intermediate.dense.bias
encoder.layer.{i}.output.dense.weight encoder.layer.{i}.output.dense.bias
encoder.layer.{i}.output.LayerNorm.weight encoder.layer.{i}.output.LayerNorm.bias"""
CROSS = """encoder.layer.{i}.crossattention.self.query.weight encoder.layer.{i}.crossattention.self.query.bias
encoder.layer.{i}.crossattention.self.key.weight encoder.layer.{i}.crossattention.self.key.bias
encoder.layer.{i}.crossattention.self.value.weight encoder.layer.{i}.crossattention.self.value.bias
encoder.layer.{i}.crossattention.output.dense.weight encoder.layer.{i}.crossattention.output.dense.bias
encoder.layer.{i}.crossattention.output.LayerNorm.weight
encoder.layer.{i}.crossattention.output.LayerNorm.bias"""
HEAD = """bias transform.dense.weight transform.dense.bias transform.LayerNorm.weight transform.LayerNorm.bias
decoder.weight decoder.bias"""


def named(prefix: str, listed: str) -> set[str]:
    return {prefix + n.format(i=i) for n in listed.split() for i in range(2)}


def original_state(blip: Blip) -> dict[str, Tensor]:
    """As `model_base.pth` holds it: tied weights under both names, momentum copies, queues, position ids."""
    state = to_theirs(layouts.original(2, 2, "all"), blip.state_dict(), blip.config.patch_size)
    state |= {
        f"{p}_m.x": torch.zeros(1) for p in ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    }
    state |= {n: torch.zeros(2) for n in ("image_queue", "text_queue", "queue_ptr")}
    state |= {f"{p}.embeddings.position_ids": torch.arange(24) for p in ("text_encoder", "text_decoder.bert")}
    return state


IDS = {"cls": 2, "sep": 3, "dec": 5, "enc": 6, "unk": 1, "mask": 4, "vision_heads": 4, "text_heads": 3}


def test_the_original_layout_has_the_published_names(make_blip: Make) -> None:
    state = {n for n in original_state(make_blip()) if not re.search("_m\\.|queue|position_ids", n)}
    heads = {f"{n}.{k}" for n in ("vision_proj", "text_proj", "itm_head") for k in ("weight", "bias")}
    assert state == (
        named("visual_encoder.", ORIGINAL_VISION)
        | named("text_encoder.", BERT + " " + CROSS)
        | named("text_decoder.bert.", BERT + " " + CROSS)
        | named("text_decoder.cls.predictions.", HEAD)
        | heads
        | {"temp"}
    )


def test_an_original_pretraining_checkpoint_gives_equal_outputs(
    make_blip: Make, make_batch: Make, tmp_path: Path
) -> None:
    blip = make_blip()
    blip.temp.data.fill_(0.03)
    torch.save({"model": original_state(blip), "epoch": 19}, tmp_path / "model_base.pth")
    again = Blip.load(tmp_path / "model_base.pth", **IDS, dropout=0.0).eval()
    assert again.config == blip.config
    assert_equal_outputs(blip, again, make_batch(3), "match_logits", "lm_logits", "similarity")
    assert again.temp.item() == pytest.approx(0.03)
    assert Blip.load(tmp_path / "model_base.pth", **IDS, image_size=64).vision.positions.shape[1] == 65
    berts = Blip.load(tmp_path / "model_base.pth").config  # of bert-base-uncased, as the published files
    assert (berts.cls, berts.sep, berts.unk, berts.mask) == (101, 102, 100, 103)


@pytest.mark.parametrize(
    ("drop", "parts", "what"),
    [
        ("text_encoder|vision_proj|text_proj|itm_head|temp", "captioner", ["lm_logits"]),
        ("text_decoder", "retrieval", ["match_logits", "similarity"]),
    ],
)
def test_original_finetuned_checkpoints_give_their_part(
    make_blip: Make, make_batch: Make, tmp_path: Path, drop: str, parts: str, what: list[str]
) -> None:
    blip = make_blip()
    state = {n: v for n, v in original_state(blip).items() if not re.match(drop, n)}
    torch.save({"model": state}, tmp_path / "model.pth")
    again = Blip.load(tmp_path / "model.pth", **IDS).eval()
    assert again.config.parts == parts
    assert_equal_outputs(blip, again, make_batch(3), *what)


def test_names_missing_unknown_or_untied_are_errors(make_blip: Make, tmp_path: Path) -> None:
    state, path = original_state(make_blip()), tmp_path / "model.pth"
    less = dict(state)
    del less["text_encoder.encoder.layer.1.output.dense.bias"], less["visual_encoder.norm.bias"]
    torch.save({"model": less | {"answer_head.weight": torch.zeros(2)}}, path)
    missing = "visual_encoder.norm.bias, text_encoder.encoder.layer.1.output.dense.bias"
    with pytest.raises(ValueError, match=f"2 missing: {missing}; 1 unknown: answer_head.weight"):
        Blip.load(path, **IDS)
    name = "text_encoder.encoder.layer.0.crossattention.self.key.weight"
    torch.save({"model": state | {name: state[name] + 1}}, path)
    with pytest.raises(
        ValueError,
        match=f"{re.escape(name)}, .* must equal the parameter it shares weights with, but differs",
    ):
        Blip.load(path, **IDS)
    torch.save({"something": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is not a checkpoint of the original BLIP code"):
        Blip.load(path)


def test_vit_initialisation(make_blip: Make, tmp_path: Path) -> None:
    source, blip = make_blip(image_size=48), make_blip()
    state = to_theirs(list(layouts.vision("", layouts.TIMM, 2)), source.state_dict(), 8)
    assert set(state) == named("", ORIGINAL_VISION)
    torch.save(
        {"model": state | {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}},
        tmp_path / "vit.pth",
    )
    init_vit(blip, tmp_path / "vit.pth")
    for name, value in blip.vision.state_dict().items():
        other = source.vision.state_dict()[name]
        assert torch.equal(value, resize_positions(other, 17) if name == "positions" else other)
    with pytest.raises(ValueError, match="a ViT has learned position embeddings"):
        init_vit(make_blip(position="sincos"), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"12 missing: blocks.2.norm1.weight, "):
        init_vit(make_blip(vision_layers=3), tmp_path / "vit.pth")


def bert_state(blip: Blip, vocab_size: int) -> dict[str, Tensor]:
    """As the published bert-base-uncased: gamma and beta, a pooler, token types, no decoder.bias."""
    entries = [*layouts.text("bert.", 2, "encoder", cross=False), *layouts.lm_head("cls.predictions.")]
    state = to_theirs(entries, blip.state_dict(), 8)
    del state["cls.predictions.decoder.bias"]
    for name in (
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.bias",
        "cls.predictions.decoder.weight",
    ):
        state[name] = state[name][:vocab_size].clone()
    state["bert.embeddings.token_type_embeddings.weight"] = torch.zeros(2, 24)
    state |= {f"bert.pooler.dense.{k}": torch.zeros(2) for k in ("weight", "bias")}
    state |= {f"cls.seq_relationship.{k}": torch.zeros(2) for k in ("weight", "bias")}
    old = {"weight": "gamma", "bias": "beta"}
    return {re.sub(r"LayerNorm\.(\w+)", lambda m: f"LayerNorm.{old[m[1]]}", n): v for n, v in state.items()}


def test_bert_initialisation_sets_both_self_attentions(
    make_blip: Make, make_batch: Make, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    source, blip = make_blip(max_text_length=40), make_blip()
    before = {n: v.clone() for n, v in blip.state_dict().items()}
    num = blip.config.vocab_size - 2
    torch.save(bert_state(source, num), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has none of the files tokenizer/vocab\.txt"):
        init_bert(blip, tmp_path, tokenizer)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(tokenizer.tokens[:num]) + "\n")
    init_bert(blip, tmp_path / "pytorch_model.bin", tokenizer)
    batch = make_batch(3)
    texts = [
        m.encode_text(batch.streams["text"].data % num, batch.streams["text"].mask) for m in (source, blip)
    ]
    torch.testing.assert_close(*texts, **CLOSE)
    after = blip.state_dict()
    for name in after:
        if ".decoder." in name:
            assert torch.equal(after[name], after[name.replace(".decoder.", ".encoder.")])
        if ".cross." in name or name.startswith("vision") or name == "itm_head.weight":
            assert torch.equal(after[name], before[name])
    assert torch.equal(
        after["text.words.weight"][num:], before["text.words.weight"][num:]
    )  # [DEC], [ENC] in BLIP
    assert torch.equal(after["lm_head.dense.weight"], source.lm_head.dense.weight)
    torch.save(bert_state(source, num - 5), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"the BERT must have 150 tokens, or 148 \(without \[DEC\] and \[ENC\]\), got"
    ):
        init_bert(blip, tmp_path, tokenizer)


def test_another_vocabulary_of_the_same_size_is_refused(
    make_blip: Make, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    blip = make_blip()
    num = blip.config.vocab_size - 2
    torch.save(bert_state(blip, num), tmp_path / "pytorch_model.bin")
    tokens = [*tokenizer.tokens[:num]]
    tokens[20], tokens[30] = tokens[30], tokens[20]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    with pytest.raises(
        ValueError, match=rf"2 of {num} tokens differ, first number 20: '{re.escape(tokens[20])}' there"
    ):
        init_bert(blip, tmp_path, tokenizer)


@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_exported_captioner_in_transformers(
    make_blip: Make, make_batch: Make, tokenizer: Tokenizer, tmp_path: Path, position: str
) -> None:
    from transformers import BlipForConditionalGeneration

    blip, batch = make_blip(position=position), make_batch(4)
    export_captioner(blip, tokenizer, tmp_path)
    theirs = BlipForConditionalGeneration.from_pretrained(tmp_path).eval()
    c, pixels = blip.config, batch.streams["image"].data
    ids = batch.streams["text"].data.clone()
    ids[:, 0] = c.dec
    tokens = blip.encode_image(pixels)
    out = theirs(pixel_values=pixels, input_ids=ids, attention_mask=batch.streams["text"].mask.long())
    torch.testing.assert_close(out.image_embeds, tokens, **CLOSE)
    real = batch.streams["text"].mask
    torch.testing.assert_close(out.logits[real], blip.lm_logits(ids, real, tokens)[real], **CLOSE)

    never = c.never
    prompt = torch.tensor([[c.cls, 20, 21, c.sep]]).expand(4, -1).clone()
    for beams, ours in ((1, sample), (3, beam)):
        options = {"max_new_tokens": 9, "min_new_tokens": 2, "num_beams": beams, "do_sample": False}
        found = theirs.generate(pixels, input_ids=prompt.clone(), suppress_tokens=never, **options)
        texts = [[i for i in row[3:] if i not in (c.sep, c.pad)] for row in found.tolist()]
        assert ours(blip, tokens, min_length=2, max_length=9, prompt_ids=[20, 21]) == texts
    again = Blip.load(tmp_path).eval()
    assert (again.config.parts, again.config.enc, again.config.cls) == ("captioner", c.enc, c.cls)
    assert_equal_outputs(blip, again, batch, "lm_logits")
    assert f"suppress_tokens={sorted(never)}" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_folder_in_half_precision_is_read_as_float32(
    make_blip: Make, tokenizer: Tokenizer, tmp_path: Path, dtype: torch.dtype
) -> None:
    from transformers import BlipForConditionalGeneration

    blip = make_blip()
    export_captioner(blip, tokenizer, tmp_path)
    BlipForConditionalGeneration.from_pretrained(tmp_path).to(dtype).save_pretrained(tmp_path)
    again = Blip.load(tmp_path)
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32, name
        if "." in name:  # the temperature is no part of a captioner
            torch.testing.assert_close(value, blip.state_dict()[name].to(dtype).float(), rtol=0, atol=0)


def test_exported_retrieval_in_transformers(
    make_blip: Make, make_batch: Make, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import BlipForImageTextRetrieval

    blip, batch = make_blip(), make_batch(4)
    export_retrieval(blip, tokenizer, tmp_path)
    theirs = BlipForImageTextRetrieval.from_pretrained(tmp_path).eval()
    ids, mask = batch.streams["text"].data, batch.streams["text"].mask.long()
    pixels = batch.streams["image"].data
    similarity = theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels, use_itm_head=False).itm_score
    torch.testing.assert_close(similarity, blip.embed_image(pixels) @ blip.embed_text(ids, mask).t(), **CLOSE)
    with_enc = ids.clone()
    with_enc[:, 0] = blip.config.enc
    wanted = blip.match_logits(ids, mask, blip.encode_image(pixels))
    torch.testing.assert_close(theirs(with_enc, pixels, attention_mask=mask).itm_score, wanted, **CLOSE)
    assert (
        theirs(ids, pixels, attention_mask=mask).itm_score - wanted
    ).abs().max() > 0.01  # [CLS] is another question
    assert f"(id {blip.config.enc})" in (tmp_path / "README.md").read_text()
    assert_equal_outputs(blip, Blip.load(tmp_path).eval(), batch, "match_logits", "similarity")


def test_exported_processor_works_offline_and_feeds_equal_inputs(
    make_blip: Make, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    export_retrieval(make_blip(), tokenizer, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8))
    out = processor(images=picture, text="a red circle", return_tensors="pt")
    assert out["pixel_values"].shape == (1, 3, 32, 32)
    ids, _ = tokenizer.encode(["a red circle"], out["input_ids"].shape[1])
    assert torch.equal(out["input_ids"], ids)
    assert Tokenizer.load(tmp_path).tokens == tokenizer.tokens
    pixels = np.asarray(picture.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC), np.float32) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    wanted = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1)).float()
    torch.testing.assert_close(out["pixel_values"][0], wanted, rtol=0, atol=1e-4)


def test_exported_config_does_not_inherit_their_defaults(
    make_blip: Make, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import BlipConfig

    blip = make_blip(dropout=0.1, label_smoothing=0.1)
    export_captioner(blip, tokenizer, tmp_path)
    config = BlipConfig.from_pretrained(tmp_path)
    assert config.vision_config.initializer_range == 0.02
    assert config.vision_config.layer_norm_eps == 1e-6
    text = config.text_config
    assert (text.num_attention_heads, text.label_smoothing, text.hidden_dropout_prob) == (3, 0.1, 0.1)
    assert text.eos_token_id == text.sep_token_id == blip.config.sep
    with pytest.raises(
        ValueError, match="needs a model with parts 'all' or 'captioner', but this one has parts 'retrieval'"
    ):
        export_captioner(make_blip(parts="retrieval"), tokenizer, tmp_path)


def test_a_folder_may_have_either_file_and_safetensors_counts_first(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert read_tensors(tmp_path)["a"].tolist() == [0, 0]
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert read_tensors(tmp_path)["a"].tolist() == [1, 1]


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    wanted = f"checkpoint: there is no model.safetensors or pytorch_model.bin in {tmp_path}"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        read_tensors(tmp_path)
