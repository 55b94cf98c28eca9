"""Key layout of torchvision's checkpoints, sizes of maps, and equality with transformers' ResNet."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from vlpipe.models.video.resnet import DEPTHS, FrozenBatchNorm, ResNet

# torchvision's resnet50/101/152: parameters and entries of the state dict.
SIZES = {50: (25_557_032, 320), 101: (44_549_160, 626), 152: (60_192_808, 932)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("layers", [50, 101, 152])
def test_parameters_and_keys_are_those_of_the_published_networks(layers: int) -> None:
    with torch.device("meta"):
        net = ResNet(depths=DEPTHS[layers])
    assert (sum(p.numel() for p in net.parameters()), len(net.state_dict())) == SIZES[layers]
    wanted = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{n}" for n in NORM)}
    for stage, depth in enumerate(DEPTHS[layers], 1):
        for block in range(depth):
            at = f"layer{stage}.{block}"
            wanted |= {f"{at}.conv{k}.weight" for k in (1, 2, 3)}
            wanted |= {f"{at}.bn{k}.{n}" for k in (1, 2, 3) for n in NORM}
        wanted |= {f"layer{stage}.0.downsample.0.weight"} | {f"layer{stage}.0.downsample.1.{n}" for n in NORM}
    assert set(net.state_dict()) == wanted


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_outputs_equal_transformers(stride_in_1x1: bool) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[32, 64, 128, 256],
        depths=[1, 2, 1, 1],
        num_labels=7,
        downsample_in_bottleneck=stride_in_1x1,
    )
    torch.manual_seed(0)
    theirs = ResNetForImageClassification(config).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = ResNet(depths=(1, 2, 1, 1), width=8, num_classes=7, stride_in_1x1=stride_in_1x1).eval()
    ours.load_state_dict({_torchvision(k): v for k, v in theirs.state_dict().items()})
    pixels = torch.rand(2, 3, 75, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels).logits, rtol=1e-5, atol=1e-5)


def _torchvision(name: str) -> str:
    name = name.replace("resnet.embedder.embedder.convolution", "conv1").replace("classifier.1", "fc")
    name = name.replace("resnet.embedder.embedder.normalization", "bn1")
    name = re.sub(
        r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.",
        lambda m: f"layer{int(m[1]) + 1}.{m[2]}.",
        name,
    )
    name = name.replace("shortcut.convolution", "downsample.0").replace(
        "shortcut.normalization", "downsample.1"
    )
    name = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", name)
    return re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", name)


def test_frozen_norm_is_batch_norm_in_evaluation_and_learns_nothing() -> None:
    frozen, usual = FrozenBatchNorm(4), nn.BatchNorm2d(4)
    for tensor in frozen.state_dict().values():
        tensor.uniform_(0.5, 2)
    usual.load_state_dict(frozen.state_dict(), strict=False)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(frozen(x), usual.eval()(x))
    assert not list(frozen.parameters())
    assert frozen.train()(x).equal(frozen.eval()(x))


def test_c4_maps_have_stride_16_and_the_caffe_pool_rounds_up() -> None:
    for caffe in (False, True):
        net = ResNet(depths=(1, 1, 1), width=4, num_classes=0, caffe_pool=caffe, norm="frozen")
        assert net.maps(torch.zeros(1, 3, 96, 160)).shape == (1, 64, 6, 10)
    assert net.features(torch.zeros(1, 3, 96, 160)).shape == (1, 64)
    x = torch.arange(36.0).reshape(1, 1, 6, 6)
    pooled = torch.nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
    assert pooled.tolist() == [[[[14, 16, 17], [26, 28, 29], [32, 34, 35]]]]
