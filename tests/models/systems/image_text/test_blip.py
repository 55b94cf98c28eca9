from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vlpipe.models.generation.generate import sample
from vlpipe.models.systems.image_text.blip.config import BlipConfig
from vlpipe.models.systems.image_text.blip.model import Blip

Make = Callable[..., Any]


def used_by(blip: Blip, value: torch.Tensor) -> set[str]:
    blip.zero_grad()
    value.square().sum().backward()
    return {name for name, p in blip.named_parameters() if p.grad is not None and p.grad.any()}


def test_encoder_and_decoder_share_all_but_self_attention(make_blip: Make, make_batch: Make) -> None:
    blip, b = make_blip(), make_batch(2)
    ids, mask, pixels = b.streams["text"].data, b.streams["text"].mask, b.streams["image"].data
    matched = used_by(blip, blip.match_logits(ids, mask, blip.encode_image(pixels)))
    decoded = used_by(blip, blip.decode_text(ids, blip.encode_image(pixels)))
    per_layer = [
        f"text.layers.{i}.{part}.{kind}"
        for i in range(2)
        for part in ("cross.q", "cross.kv", "cross.out", "cross.norm", "feed_forward.up", "feed_forward.down")
        for kind in ("weight", "bias")
    ]
    norms = [f"text.layers.{i}.feed_forward.norm.{kind}" for i in range(2) for kind in ("weight", "bias")]
    embeddings = ["text.words.weight", "text.positions.weight", "text.norm.weight", "text.norm.bias"]
    shared = {n for n in matched & decoded if n.startswith("text.")}
    assert shared == {*per_layer, *norms, *embeddings}
    own = {n.split(".", 3)[3] for n in (matched | decoded) - shared if n.startswith("text.layers")}
    assert {n.split(".")[0] for n in own} == {"encoder", "decoder"}
    assert {n.split(".", 1)[1] for n in own if n.startswith("decoder")} == {
        f"{part}.{kind}" for part in ("qkv", "out", "norm") for kind in ("weight", "bias")
    }
    texts = used_by(blip, blip.encode_text(ids, mask))
    assert texts < matched
    assert not any(".cross." in n or n.startswith("vision") for n in texts)
    assert "text.words.weight" in used_by(
        blip, blip.predict(blip.decode_text(ids, blip.encode_image(pixels)).detach())
    )


def test_parameter_counts_are_those_of_the_papers_table_3() -> None:
    """252M "all but SA"; the other rows follow from it: 224M with one SA, 361M with nothing shared."""
    with torch.device("meta"):
        blip = Blip(BlipConfig(vocab_size=30524, pad=0, cls=101, sep=102, dec=30522, enc=30523))
    count = {name: p.numel() for name, p in blip.named_parameters()}
    total = sum(count.values())
    decoder = sum(n for name, n in count.items() if ".decoder." in name)
    text = sum(n for name, n in count.items() if name.startswith("text.") and ".encoder." not in name)
    assert round(total / 1e6) == 252
    assert round((total - decoder) / 1e6) == 224
    assert round((total + text - decoder) / 1e6) == 361
    assert (
        sum(n for name, n in count.items() if name.startswith("vision.")) == 85_798_656
    )  # ViT-B/16 less its head


def test_the_decoder_does_not_see_the_future_and_the_encoder_does(make_blip: Make, make_batch: Make) -> None:
    blip, b = make_blip(), make_batch(2)
    ids, mask, tokens = b.streams["text"].data, torch.ones(2, 10), blip.encode_image(b.streams["image"].data)
    changed = ids.clone()
    changed[:, 5:] = (ids[:, 5:] + 1) % 100 + 8
    before, after = (blip.lm_logits(x, mask, tokens) for x in (ids, changed))
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-3
    before, after = (blip.encode_text(x, mask) for x in (ids, changed))
    assert (before - after).abs().amax(-1).min() > 1e-3


def test_padding_changes_nothing(make_blip: Make, make_batch: Make) -> None:
    blip, b = make_blip(), make_batch(2)
    ids, tokens = b.streams["text"].data[:, :6], blip.encode_image(b.streams["image"].data)
    mask = torch.ones(2, 6, dtype=torch.long)
    junk = torch.cat([ids, torch.full((2, 4), 30)], 1)
    longer = torch.cat([mask, torch.zeros(2, 4, dtype=torch.long)], 1)
    for a, c in (
        (blip.encode_text(ids, mask), blip.encode_text(junk, longer)[:, :6]),
        (blip.embed_text(ids, mask), blip.embed_text(junk, longer)),
        (blip.match_logits(ids, mask, tokens), blip.match_logits(junk, longer, tokens)),
        (blip.lm_logits(ids, mask, tokens), blip.lm_logits(junk, longer, tokens)[:, :6]),
    ):
        torch.testing.assert_close(a, c)


def test_short_ways_equal_long_ways(make_blip: Make, make_batch: Make) -> None:
    blip, b = make_blip(), make_batch(4)
    ids, mask, tokens = (
        b.streams["text"].data,
        b.streams["text"].mask,
        blip.encode_image(b.streams["image"].data),
    )
    torch.testing.assert_close(blip.embed_image(b.streams["image"].data), blip.image_features(tokens))
    torch.testing.assert_close(blip.embed_text(ids, mask), blip.text_features(blip.encode_text(ids, mask)))
    torch.testing.assert_close(blip.embed_text(ids, mask).norm(dim=1), torch.ones(4))
    rows = torch.tensor([2, 2, 0, 1])
    torch.testing.assert_close(
        blip.match_logits(ids, mask, tokens, rows), blip.match_logits(ids, mask, tokens[rows])
    )


def test_first_tokens_are_set_by_the_model(make_blip: Make, make_batch: Make) -> None:
    blip, b = make_blip(), make_batch(2)
    ids, mask, tokens = (
        b.streams["text"].data,
        b.streams["text"].mask,
        blip.encode_image(b.streams["image"].data),
    )
    kept, other = ids.clone(), ids.clone()
    other[:, 0] = 17
    torch.testing.assert_close(blip.match_logits(ids, mask, tokens), blip.match_logits(other, mask, tokens))
    torch.testing.assert_close(blip.lm_logits(ids, mask, tokens), blip.lm_logits(other, mask, tokens))
    assert torch.equal(ids, kept)
    assert not torch.allclose(blip.embed_text(ids, mask), blip.embed_text(other, mask))


def test_init_std_is_that_of_the_weights(make_blip: Make) -> None:
    for std in (0.02, 0.08):
        blip = Blip(replace(make_blip().config, init_std=std))
        for name, weight in blip.named_parameters():
            if weight.dim() == 2 and weight.numel() > 1000:
                assert weight.std().item() == pytest.approx(std, rel=0.1), name


@pytest.mark.parametrize(
    "changes", [{}, {"position": "sincos"}, {"parts": "captioner"}, {"parts": "retrieval"}]
)
def test_saved_and_loaded_is_the_same_model(make_blip: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    blip = make_blip(**changes)
    blip.save(tmp_path)
    first = (tmp_path / "model.safetensors").read_bytes()
    again = Blip.load(tmp_path)
    assert again.config == blip.config
    assert all(
        torch.equal(a, b)
        for a, b in zip(blip.state_dict().values(), again.state_dict().values(), strict=True)
    )
    again.save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == first


def test_loading_at_another_image_size_interpolates(make_blip: Make, tmp_path: Path) -> None:
    blip = make_blip()
    blip.save(tmp_path)
    bigger = Blip.load(tmp_path, image_size=48, dropout=0.2).eval()
    assert bigger.vision.positions.shape[1] == 37
    assert (bigger.config.dropout, bigger.text.dropout) == (0.2, 0.2)
    assert bigger.encode_image(torch.randn(1, 3, 48, 48)).shape == (1, 37, 32)
    with pytest.raises(ValueError, match=r"pixels must have shape \(B, 3, 48, 48\), got \(1, 3, 32, 32\)"):
        bigger.encode_image(torch.randn(1, 3, 32, 32))


def test_weights_that_do_not_fit_are_listed(make_blip: Make, tmp_path: Path) -> None:
    make_blip(parts="captioner").save(tmp_path)
    with pytest.raises(ValueError, match=r"18 missing: itm_head.bias, .*; 17 unknown: lm_head.bias, "):
        Blip.load(tmp_path, parts="retrieval")
    with pytest.raises(
        ValueError, match=r"1 of another shape: text.positions.weight \(24, 24\) instead of \(9, 24\)"
    ):
        Blip.load(tmp_path, max_text_length=9)


def test_a_part_that_is_not_there_is_named(make_blip: Make, make_batch: Make) -> None:
    b = make_batch(1)
    captioner, retrieval = make_blip(parts="captioner"), make_blip(parts="retrieval")
    tokens = captioner.encode_image(b.streams["image"].data)
    with pytest.raises(
        ValueError, match="this needs the module itm_head, which a model with parts 'captioner' does not have"
    ):
        captioner.match_logits(b.streams["text"].data, b.streams["text"].mask, tokens)
    with pytest.raises(ValueError, match="this needs the module text_proj"):
        captioner.encode_text(b.streams["text"].data, b.streams["text"].mask)
    with pytest.raises(ValueError, match="this needs the module lm_head"):
        sample(retrieval, tokens)


def test_bad_input_is_explained(make_blip: Make) -> None:
    blip = make_blip()
    tokens = blip.encode_image(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="the text has 25 tokens, but max_text_length is 24"):
        blip.encode_text(torch.ones(1, 25, dtype=torch.long), torch.ones(1, 25))
    with pytest.raises(ValueError, match="lm_logits needs right-padded text"):
        blip.lm_logits(torch.ones(1, 3, dtype=torch.long), torch.tensor([[1, 0, 1]]), tokens)
    with pytest.raises(ValueError, match="position must be one of learned, sincos, got 'sine'"):
        make_blip(position="sine")
