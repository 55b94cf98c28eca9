from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from vlpipe.models.blocks.attention import attend
from vlpipe.models.systems.image_text.blip.vision import (
    Block,
    Vit,
    cut_patches,
    resize_positions,
    sincos_positions,
)

SIZES = {"image_size": 32, "patch_size": 8, "width": 32, "num_layers": 2, "num_heads": 4}


def test_patches_times_matrix_is_the_strided_convolution() -> None:
    pixels, weight, bias = torch.randn(2, 3, 32, 24), torch.randn(5, 3, 8, 8), torch.randn(5)
    conv = F.conv2d(pixels, weight, bias, stride=8).flatten(2).transpose(1, 2)
    torch.testing.assert_close(
        cut_patches(pixels, 8) @ weight.flatten(1).t() + bias, conv, rtol=1e-4, atol=1e-4
    )


def test_plain_attention_is_the_fused_one() -> None:
    q, k, v = torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = torch.rand(2, 1, 1, 7) > 0.3
    mask[..., 0] = True
    for given, causal in ((mask, False), (None, True), (None, False)):
        fused = F.scaled_dot_product_attention(q, k, v, attn_mask=given, is_causal=causal)
        torch.testing.assert_close(attend(q, k, v, given, causal), fused.transpose(1, 2).flatten(2))


def test_all_tokens_after_the_final_norm_and_first_is_token_0() -> None:
    vit = Vit(**SIZES)
    tokens = vit(torch.randn(3, 3, 32, 32))
    assert tokens.shape == (3, 17, 32)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(3, 17), rtol=0, atol=1e-5)
    pixels = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(vit(pixels, first=True), vit(pixels)[:, :1])


def test_initial_features_differ_between_images() -> None:
    """At transformers' initial std of 1e-10 they are equal to 1e-7."""
    tokens = Vit(image_size=224, patch_size=16, width=96, num_layers=2, num_heads=3)(
        torch.randn(4, 3, 224, 224)
    )
    assert tokens[:, 0].std(0).mean() > 1e-3


def test_positions_tell_patches_apart() -> None:
    """The same patch everywhere: only positions can make the tokens differ."""
    for position in ("learned", "sincos"):
        tokens = Vit(**SIZES, position=position)(torch.ones(1, 3, 32, 32))[0, 1:]
        assert torch.pdist(tokens).min() > 1e-4
    assert "positions" not in Vit(**SIZES, position="sincos").state_dict()


def test_sincos_is_the_closed_form() -> None:
    table = sincos_positions(4, 16)
    assert table.shape == (1, 17, 16)
    assert not table[0, 0].any()
    row, column = 3, 2
    token = table[0, 1 + row * 4 + column]
    for i in range(4):
        omega = 10000 ** (-i / 4)
        wanted = [
            math.sin(column * omega),
            math.cos(column * omega),
            math.sin(row * omega),
            math.cos(row * omega),
        ]
        torch.testing.assert_close(token[[i, 4 + i, 8 + i, 12 + i]], torch.tensor(wanted))


def test_resized_positions_keep_the_class_token_and_a_flat_table() -> None:
    table = torch.cat([torch.full((1, 1, 6), 7.0), torch.full((1, 16, 6), 3.0)], dim=1)
    bigger = resize_positions(table, 1 + 36)
    assert bigger.shape == (1, 37, 6)
    torch.testing.assert_close(bigger[0, 0], torch.full((6,), 7.0))
    torch.testing.assert_close(bigger[0, 1:], torch.full((36, 6), 3.0))
    assert resize_positions(table, 17) is table


def test_drop_path_drops_whole_rows_and_keeps_the_mean() -> None:
    block = Block(8, 2, 0.25, 1e-6).train()
    kept = block._drop(torch.ones(20000, 1, 1)).flatten()
    assert set(kept.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(kept.mean().item() - 1) < 0.02
    assert [b.drop_path for b in Vit(**{**SIZES, "num_layers": 3}, drop_path=0.2).blocks] == [0.0, 0.1, 0.2]
