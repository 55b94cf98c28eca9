"""CLIP's ResNet and its bag of words: against references, and in open_clip's folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy, outputs
from vlpipe.models import folder
from vlpipe.models.blocks.modified_resnet import ModifiedResNet
from vlpipe.models.interface.batch import Stream
from vlpipe.models.systems.image_text.clip import Clip
from vlpipe.models.tokenizer import Tokenizer

TEXT: dict[str, Any] = {
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 4,
    "max_text_length": 16,
    "embed_dim": 24,
}
VIT: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "vision_width": 32,
    "vision_layers": 2,
    "vision_heads": 4,
}
RESNET: dict[str, Any] = {
    "patch_size": 32,
    "image_size": 64,
    "vision_width": 16,
    "vision_layers": [1, 2, 1, 1],
    "vision_heads": 8,
}


def clip(**changes: Any) -> Any:
    """A small model with noise in all weights and statistics, in eval mode."""
    model = noisy(Clip(**{"vocab_size": 99, "end": 98, **TEXT, **VIT, **changes}), but="logit_scale")
    for name, value in model.named_buffers():
        if "running" in name:
            value.add_(torch.rand_like(value))
    return model


def reference(state: dict[str, Tensor], x: Tensor, depths: list[int], num_heads: int) -> Tensor:
    """CLIP's ResNet in evaluation mode, from its weights by name."""

    def normed(x: Tensor, conv: str, norm: str, **options: Any) -> Tensor:
        mean, var, weight, bias = (
            state[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(F.conv2d(x, state[f"{conv}.weight"], **options), mean, var, weight, bias)

    x = normed(x, "conv1", "bn1", stride=2, padding=1).relu()
    x = normed(x, "conv2", "bn2", padding=1).relu()
    x = F.avg_pool2d(normed(x, "conv3", "bn3", padding=1).relu(), 2)
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = normed(x, f"{at}.conv1", f"{at}.bn1").relu()
            y = normed(y, f"{at}.conv2", f"{at}.bn2", padding=1).relu()
            y = normed(F.avg_pool2d(y, stride), f"{at}.conv3", f"{at}.bn3")
            if block == 0:
                x = normed(F.avg_pool2d(x, stride), f"{at}.downsample.0", f"{at}.downsample.1")
            x = (x + y).relu()
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + state["attnpool.positional_embedding"][:, None]
    names = ("q_proj", "k_proj", "v_proj")
    found, _ = F.multi_head_attention_forward(
        x[:1], x, x, x.shape[-1], num_heads,
        in_proj_weight=None, in_proj_bias=torch.cat([state[f"attnpool.{n}.bias"] for n in names]),
        bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
        out_proj_weight=state["attnpool.c_proj.weight"], out_proj_bias=state["attnpool.c_proj.bias"],
        use_separate_proj_weight=True, training=False, need_weights=False,
        **{f"{n}_weight": state[f"attnpool.{n}.weight"] for n in names},
    )  # fmt: skip
    return found[0]


def test_the_resnet_is_clip_s() -> None:
    model, pixels = clip(**RESNET), torch.randn(5, 3, 64, 64)
    state = {n.removeprefix("resnet."): v for n, v in model.state_dict().items() if n.startswith("resnet.")}
    wanted = F.normalize(reference(state, pixels, [1, 2, 1, 1], 8), dim=-1)
    torch.testing.assert_close(outputs(model, image=Stream(pixels)).image_feat, wanted, **TOLERANCE)


def test_blocks_of_a_resnet_begin_as_their_shortcuts() -> None:
    net = ModifiedResNet(32, [1, 2, 1, 1], 16, 8, 24)
    x = torch.randn(2, 128, 4, 4).relu()
    torch.testing.assert_close(net.get_submodule("layer2.1")(x), x)
    with pytest.raises(ValueError, match="image_size must be a multiple of 32, got 48"):
        ModifiedResNet(48, [1, 2, 1, 1], 16, 8, 24)
    with pytest.raises(ValueError, match=r"four stages have depths, got \[1, 2\]"):
        ModifiedResNet(32, [1, 2], 16, 8, 24)


def test_a_bag_of_words_is_their_mean_in_any_order() -> None:
    model, ids = clip(text="bag_of_words"), torch.randint(0, 99, (5, 6))
    mask = torch.arange(6)[None] < torch.tensor([6, 5, 4, 2, 1])[:, None]
    found = outputs(model, text=Stream(ids, mask)).text_feat
    for row, length in enumerate(mask.sum(1)):
        wanted = model.text_proj(model.bag(ids[row, :length]).mean(0))
        torch.testing.assert_close(found[row], F.normalize(wanted, dim=0), **TOLERANCE)
    turned = outputs(model, text=Stream(ids.flip(1), mask.flip(1))).text_feat
    torch.testing.assert_close(turned, found, **TOLERANCE)


@pytest.mark.parametrize("towers", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize(("end", "pool"), [(98, None), (3, "eos")])
def test_a_folder_of_open_clip_gives_the_same_model(
    tmp_path: Path, towers: dict[str, Any], end: int, pool: str | None
) -> None:
    """`tests/models/open_clip_parity.py` compares with open_clip itself, which needs torchvision."""
    model = clip(end=end, activation="gelu", **towers)
    model.export(tmp_path / "theirs", "open_clip")
    text = json.loads((tmp_path / "theirs/open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert text.get("pool_type") == pool
    again = folder.load(tmp_path / "theirs")
    assert vars(again.config) == vars(model.config)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    folder.save(model, tmp_path / "ours")
    assert vars(folder.load(tmp_path / "ours").config) == vars(model.config)


def test_names_are_open_clip_s(tmp_path: Path) -> None:
    model = clip()
    model.export(tmp_path, "open_clip")
    theirs = load_file(tmp_path / "open_clip_model.safetensors")
    layer = {
        *(f"ln_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")),
        *(f"attn.{n}" for n in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")),
        *(f"mlp.{n}.{kind}" for n in ("c_fc", "c_proj") for kind in ("weight", "bias")),
    }
    wanted = {
        *("logit_scale", "token_embedding.weight", "positional_embedding", "text_projection"),
        *("visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight", "visual.proj"),
        *(
            f"{n}.{kind}"
            for n in ("visual.ln_pre", "visual.ln_post", "ln_final")
            for kind in ("weight", "bias")
        ),
        *(
            f"{start}transformer.resblocks.{i}.{n}"
            for start in ("", "visual.")
            for i in range(2)
            for n in layer
        ),
    }
    assert set(theirs) == wanted
    assert theirs["visual.conv1.weight"].shape == (32, 3, 8, 8)
    assert torch.equal(theirs["text_projection"], model.text_proj.weight.t())


def test_what_another_library_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="transformers has no CLIP with a ResNet; set kind: open_clip"):
        clip(**RESNET).export(tmp_path / "a")
    with pytest.raises(ValueError, match="no other library has CLIP with text: bag_of_words"):
        clip(text="bag_of_words").export(tmp_path / "b", "open_clip")
    clip().export(tmp_path / "c", "open_clip")
    config = json.loads((tmp_path / "c/open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "convnext_base"
    (tmp_path / "c/open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"not CLIP as published: it sets vision_cfg\.timm_model_name"):
        folder.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}, "not CLIP as published: it sets mean"),
        ({"vision_cfg": {"image_size": [32, 64]}}, r"it sets image_size \[32, 64\]"),
        ({"text_cfg": {"pool_type": "eos"}}, r"is not a config of open_clip: KeyError\('eos_id'\)"),
        ({"vision_cfg": {"patch_dropout": 0.0, "ls_init_value": None, "image_size": [32, 32]}}, ""),
    ],
)
def test_configs_of_open_clip(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    model = clip()
    model.export(tmp_path, "open_clip")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    for name, values in change.items():
        (config if name in config else config["model_cfg"])[name] |= values
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    if said:
        with pytest.raises(ValueError, match=said):
            folder.load(tmp_path)
    else:
        assert vars(folder.load(tmp_path).config) == vars(model.config)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="text is transformer or bag_of_words, got 'bag'"):
        clip(text="bag")
    for wrong in ({"end": 99}, {"vision_heads": 5}, {**RESNET, "vision_heads": 12}, {"text_heads": 3}):
        with pytest.raises(ValueError, match="heads must divide the width, and end must be below vocab_size"):
            clip(**wrong)


def test_a_tokenizer_goes_along(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_bpe(["a red circle above a blue square"] * 9, 520, "clip")
    model = Clip(vocab_size=tokenizer.vocab_size, end=tokenizer.end, **TEXT, **VIT)
    model.export(tmp_path, "open_clip", tokenizer)
    assert Tokenizer.load(tmp_path).ids("a red square") == tokenizer.ids("a red square")
