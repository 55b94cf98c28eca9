"""MobileNetV2 equals transformers', and with real weights a second implementation, which follows a layer list of TFLite."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from tests.models.parity import TOLERANCE, noisy, outputs, through_a_folder
from vlpipe.models import folder
from vlpipe.models.blocks.mobilenet_v2 import MobileNetV2Features, MobileNetV2Tokens, channels_of
from vlpipe.models.interface.batch import Stream
from vlpipe.models.systems.image_text.blip.config import BlipConfig
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.systems.image_text.clip import Clip
from vlpipe.models.systems.images.mobilenet_v2 import MobileNetV2
from vlpipe.stages.common.pixels import MEAN, STD, to_pixels

DATA = Path(os.environ.get("VLPIPE_DATA", Path(__file__).resolve().parents[5] / "shared" / "data"))
WEIGHTS, LAYERS = DATA / "mobilenetv2/dequantised_fp16.npz", DATA / "mobilenetv2/ops.json"
PHOTOS = DATA / "flickr8k"
needs_weights = pytest.mark.skipif(
    not WEIGHTS.is_file(), reason=f"real data not found: {WEIGHTS} (set VLPIPE_DATA)"
)
needs_photos = pytest.mark.skipif(
    not PHOTOS.is_dir(), reason=f"real data not found: {PHOTOS} (set VLPIPE_DATA)"
)
DOGS = range(151, 269)  # of ImageNet's 1,000 classes, from chihuahua to Mexican hairless
SPEC = {"use": "mobilenet_v2:MobileNetV2Tokens", "multiplier": 0.35}
TOWERS: dict[str, Any] = {
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "embed_dim": 8,
    "vision_width": 24,
}
BLIP: dict[str, Any] = {
    **TOWERS,
    "vocab_size": 40,
    "pad": 0,
    "cls": 1,
    "sep": 2,
    "dec": 3,
    "enc": 4,
    "dropout": 0.0,
}


def theirs(multiplier: float) -> Any:
    """Their classifier with noise in all weights and statistics, in eval mode."""
    torch.manual_seed(0)
    config = MobileNetV2Config(depth_multiplier=multiplier, num_labels=7, image_size=96)
    model = noisy(MobileNetV2ForImageClassification(config))
    for name, value in model.named_buffers():
        if "running" in name:
            value.add_(torch.rand_like(value))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("multiplier", [0.35, 1.0])
@pytest.mark.parametrize("size", [(96, 96), (75, 50)], ids=str)  # odd sizes are padded on both sides
def test_it_equals_transformers(tmp_path: Path, multiplier: float, size: tuple[int, int]) -> None:
    reference = theirs(multiplier)
    model = through_a_folder(reference, tmp_path)
    pixels = torch.randn(5, 3, *size)
    wanted = reference(model.backbone.rescaled(pixels), output_hidden_states=True)
    out = outputs(model, image=Stream(pixels))
    scale = wanted.logits.abs().max()
    torch.testing.assert_close(out.logits / scale, wanted.logits / scale, **TOLERANCE)
    pooled = reference.mobilenet_v2(model.backbone.rescaled(pixels)).pooler_output
    torch.testing.assert_close(out.image_feat, F.normalize(pooled, dim=-1), **TOLERANCE)
    assert out.image_feat.shape == (5, model.embed_dim) == (5, 1280)


@pytest.mark.slow
def test_it_opens_in_transformers(tmp_path: Path) -> None:
    reference = theirs(0.35)
    through_a_folder(reference, tmp_path / "theirs").export(tmp_path / "ours")
    again = MobileNetV2ForImageClassification.from_pretrained(tmp_path / "ours")
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0, msg=name)
    with pytest.raises(ValueError, match="no MobileNetV2 with batch norm folded in"):
        MobileNetV2(norm_eps=None).export(tmp_path / "none")


def test_another_network_is_refused(tmp_path: Path) -> None:
    config = MobileNetV2Config(depth_multiplier=0.35, output_stride=16, tf_padding=False)
    MobileNetV2ForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not the paper's: it sets output_stride 16, tf_padding False"):
        folder.load(tmp_path)


def test_sizes() -> None:
    """Table 2 of the paper has 3.4 million parameters; widths are multiples of 8 that lose at most 10 %."""
    assert (
        sum(p.numel() for p in MobileNetV2().parameters()) == 3_504_872
    )  # with the classifier of 1.28 million
    assert [channels_of(n, 0.35) for n in (16, 24, 32, 64, 96, 160, 320)] == [8, 8, 16, 24, 32, 56, 112]
    with pytest.raises(ValueError, match="image_size must be a multiple of 32, got 48"):
        MobileNetV2Tokens(image_size=48, width=16)
    with pytest.raises(ValueError, match="multiplier must be above 0, got 0"):
        MobileNetV2Features(multiplier=0)


def test_rescaling_undoes_clip_s_normalisation() -> None:
    values = torch.rand(2, 3, 4, 4)
    pixels = (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(MobileNetV2Features(multiplier=0.35).rescaled(pixels), 2 * values - 1)


def test_tokens_are_positions_of_the_feature_map() -> None:
    torch.manual_seed(0)
    encoder = MobileNetV2Tokens(image_size=64, width=24, multiplier=0.35).eval()
    pixels = torch.randn(2, 3, 64, 64)
    found, features = encoder(pixels), encoder.backbone(pixels)
    assert found.shape == (2, 1 + 4, 24)
    at = encoder.proj(features[:, :, 1, 0]) + encoder.positions[0, 1 + 2]
    torch.testing.assert_close(found[:, 3], encoder.norm(at))
    first = encoder.proj(features.mean((2, 3))) + encoder.positions[0, 0]
    torch.testing.assert_close(found[:, 0], encoder.norm(first))
    torch.testing.assert_close(encoder(pixels, first=True), found[:, :1])


def test_it_is_an_encoder_of_blip(tmp_path: Path) -> None:
    """Saved and loaded, with its spec; another image size interpolates the positions."""
    torch.manual_seed(0)
    model = noisy(Blip(BlipConfig(**BLIP, image_size=64, vision=SPEC)))
    pixels, ids = torch.randn(3, 3, 64, 64), torch.randint(5, 40, (3, 6))
    tokens = model.encode_image(pixels)
    assert tokens.shape == (3, 5, 24)
    mask = torch.ones_like(ids)
    assert not torch.allclose(
        model.lm_logits(ids, mask, tokens)[0], model.lm_logits(ids, mask, tokens.flip(0))[0]
    )
    torch.testing.assert_close(model.embed_image(pixels), model.image_features(tokens))
    folder.save(model, tmp_path)
    again = folder.load(tmp_path).eval()
    assert again.config == model.config
    torch.testing.assert_close(again.encode_image(pixels), tokens, rtol=0, atol=0)
    assert folder.load(tmp_path, image_size=96).encode_image(torch.randn(1, 3, 96, 96)).shape == (1, 10, 24)
    with pytest.raises(
        ValueError, match=r"transformers has no BLIP with vision: mobilenet_v2:MobileNetV2Tokens"
    ):
        model.check_export("captioner")


def test_it_is_an_encoder_of_clip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Clip(vocab_size=40, end=2, image_size=64, vision=SPEC, **TOWERS).eval()
    pixels = torch.randn(3, 3, 64, 64)
    wanted = F.normalize(model.image_proj(model.vision(pixels)[:, 0]), dim=-1)
    torch.testing.assert_close(outputs(model, image=Stream(pixels)).image_feat, wanted)
    folder.save(model, tmp_path)
    again = folder.load(tmp_path).eval()
    assert vars(again.config) == vars(model.config)
    torch.testing.assert_close(outputs(again, image=Stream(pixels)).image_feat, wanted)
    with pytest.raises(
        ValueError, match="no other library has CLIP with vision: mobilenet_v2:MobileNetV2Tokens"
    ):
        model.check_export("open_clip")


def test_an_encoder_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"models.blocks.mobilenet_v2 has no class 'MobileNet'"):
        Blip(BlipConfig(**BLIP, vision={"use": "mobilenet_v2:MobileNet"}))
    with pytest.raises(ValueError, match="unexpected keyword argument 'multiplyer'"):
        Clip(vocab_size=40, end=2, vision={**SPEC, "multiplyer": 1}, **TOWERS)


def test_what_is_no_file_of_the_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"cannot be read as an .npz of arrays"):
        folder.load(tmp_path / "text.npz", use="mobilenet_v2:MobileNetV2")
    np.savez(
        tmp_path / "part.npz",
        **{"m/Conv1/Conv2D": np.zeros((32, 3, 3, 3)), "m/predictions/BiasAdd": np.zeros(7)},
    )
    with pytest.raises(ValueError, match=r"weights do not fit: \d+ missing: backbone.first.conv.bias"):
        folder.load(tmp_path / "part.npz", use="mobilenet_v2:MobileNetV2")


def layer_list(pixels: Tensor) -> dict[str, Tensor]:
    """What the layers of `ops.json` give of pixels (B, 3, 224, 224) from -1 to 1, float64: `features`, `logits`."""
    with np.load(WEIGHTS) as file:
        weights = {
            int(name.partition("|")[0]): torch.from_numpy(file[name]).float().double() for name in file.files
        }
    known: dict[int, Tensor] = {0: pixels}
    found: dict[str, Tensor] = {}
    for layer in json.loads(LAYERS.read_text()):
        (first, _, shape), *others = layer["inputs"]
        out, name, out_shape = layer["outputs"][0]
        x, op = known[first], layer["op"]
        if op == "ADD":
            x = x + known[others[0][0]]
        elif op == "MEAN":
            found["features"] = x
            x = x.mean((2, 3))
        elif op == "FULLY_CONNECTED":
            x = found["logits"] = F.linear(x, weights[others[0][0]], weights[others[1][0]])
        elif op.endswith("CONV_2D"):
            weight, bias = weights[others[0][0]], weights[others[1][0]]
            deep = op == "DEPTHWISE_CONV_2D"
            weight = weight.permute(3, 0, 1, 2) if deep else weight.permute(0, 3, 1, 2)
            halves = shape[1] // 2 == out_shape[1]  # 224 -> 112, or padded 113 -> 56
            if weight.shape[-1] == 3 and shape[1] % 2 == 0:
                x = F.pad(x, (0, 1, 0, 1) if halves else (1, 1, 1, 1))
            elif weight.shape[-1] == 3 and not halves:
                x = F.pad(x, (1, 1, 1, 1))
            x = F.conv2d(x, weight, bias, stride=2 if halves else 1, groups=len(weight) if deep else 1)
            x = x.clamp(0, 6) if "relu" in name.lower() else x
        elif op == "PAD":
            x = F.pad(x, (0, out_shape[2] - shape[2], 0, out_shape[1] - shape[1]))
        elif op == "SOFTMAX":
            x = x.softmax(-1)
        else:
            assert op == "QUANTIZE"
        known[out] = x
    return found


def photos(num: int, word: str = "") -> npt.NDArray[np.float32]:
    """CLIP-normalised pixels (num, 3, 224, 224) of photos of which every caption has `word`."""
    rows = (json.loads(line) for line in (PHOTOS / "dev.jsonl").read_text().splitlines())
    files = [
        row["file"] for row in rows if all(word in c.lower().split() for c in row["captions"]) or not word
    ]
    return np.stack([to_pixels(Image.open(PHOTOS / file).convert("RGB"), 224) for file in files[:num]])


@needs_weights
@needs_photos
@pytest.mark.slow
def test_the_real_weights_give_what_their_layer_list_gives() -> None:
    model = folder.load(WEIGHTS, use="mobilenet_v2:MobileNetV2").double().eval()
    pixels = torch.from_numpy(photos(6)).double()
    with torch.inference_mode():
        wanted = layer_list(model.backbone.rescaled(pixels))
        out = outputs(model, image=Stream(pixels))
        torch.testing.assert_close(model.backbone(pixels), wanted["features"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out.logits, wanted["logits"], rtol=1e-9, atol=1e-9)


@needs_weights
@needs_photos
@pytest.mark.slow
def test_the_real_weights_know_dogs() -> None:
    """Of photos whose captions all say `dog`, most are of one of ImageNet's 118 breeds of dogs."""
    model = folder.load(WEIGHTS, use="mobilenet_v2:MobileNetV2").eval()
    with torch.inference_mode():
        guess = outputs(model, image=Stream(torch.from_numpy(photos(40, "dog")))).logits.argmax(1)
    assert len(guess) == 40
    assert sum(int(one) in DOGS for one in guess) >= 28


@needs_weights
def test_a_system_starts_from_the_real_weights() -> None:
    spec = {**SPEC, "multiplier": 1.0, "norm_eps": None}
    source = folder.load(WEIGHTS, use="mobilenet_v2:MobileNetV2")
    for model in (
        Blip(BlipConfig(**BLIP, image_size=64, vision=spec)),
        Clip(vocab_size=40, end=2, image_size=64, vision=spec, **TOWERS),
    ):
        folder.copy_part(model, source, "backbone", "vision.backbone")
        for name, value in model.vision.backbone.state_dict().items():
            assert torch.equal(value, source.backbone.state_dict()[name]), name
    with pytest.raises(
        ValueError, match=r"init_parts: backbone into vision.backbone: the weights do not fit"
    ):
        folder.copy_part(
            Blip(BlipConfig(**BLIP, image_size=64, vision=SPEC)), source, "backbone", "vision.backbone"
        )
