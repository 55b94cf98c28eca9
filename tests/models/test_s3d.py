from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.video.resnext3d import ResNeXt3d
from vlpipe.models.video.s3d import S3d
from vlpipe.models.video.s3dg import S3dG, TextModule, same_max_pool, space_to_depth
from vlpipe.models.video.words import Words

BLOCKS = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")


def frames(seed: int, num: int = 16, side: int = 64) -> Tensor:
    return torch.rand((1, 3, num, side, side), generator=torch.Generator().manual_seed(seed))


def shaken(net: nn.Module) -> nn.Module:
    """In eval mode, with BatchNorms that shift and scale."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            for value in (module.weight.data, module.running_var):
                value.uniform_(0.5, 1.5)
            for value in (module.bias.data, module.running_mean):
                value.normal_(0, 0.3)
    return net.eval()


@pytest.fixture(scope="module")
def s3d() -> S3d:
    torch.manual_seed(0)
    net = shaken(S3d())
    assert isinstance(net, S3d)
    return net


@pytest.fixture(scope="module")
def s3dg() -> S3dG:
    torch.manual_seed(0)
    net = shaken(S3dG(num_words=50))
    assert isinstance(net, S3dG)
    return net


def norm_relu(x: Tensor, state: dict[str, Tensor], at: str, eps: float) -> Tensor:
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (state[f"{at}.{n}"][None, :, None, None, None] for n in names)
    return ((x - mean) / (var + eps).sqrt() * weight + bias).clamp(min=0)


@pytest.mark.slow
@torch.inference_mode()
def test_s3d_layer_by_layer(s3d: S3d) -> None:
    """The paper's network written out over the published names: 16 places in a row, pools at 1, 4, 7 and 13."""
    state = s3d.state_dict()

    def unit(x: Tensor, at: str, stride: tuple[int, ...] = (1, 1, 1)) -> Tensor:
        weight = state[f"{at}.0.weight"]
        pads = [k // 2 for k in weight.shape[2:]]
        return norm_relu(F.conv3d(x, weight, None, stride, pads), state, f"{at}.1", 1e-3)

    def separable(x: Tensor, at: str, s: int = 1) -> Tensor:
        return unit(unit(x, f"{at}.0", (1, s, s)), f"{at}.1", (s, 1, 1))

    def mixed(x: Tensor, at: str) -> Tensor:
        pooled = unit(F.max_pool3d(x, 3, 1, 1), f"{at}.branch3.1")
        b1, b2 = (separable(unit(x, f"{at}.branch{b}.0"), f"{at}.branch{b}.1") for b in (1, 2))
        return torch.cat([unit(x, f"{at}.branch0"), b1, b2, pooled], dim=1)

    x = separable(frames(2, 24), "features.0", 2)
    x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    x = separable(unit(x, "features.2"), "features.3")
    x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for place in range(5, 16):
        if place == 7:
            x = F.max_pool3d(x, 3, 2, 1)
        elif place == 13:
            x = F.max_pool3d(x, 2, 2)
        else:
            x = mixed(x, f"features.{place}")
    assert x.shape == (1, 1024, 3, 2, 2)
    x = F.avg_pool3d(x, (2, 2, 2), stride=1)
    torch.testing.assert_close(s3d.pooled(frames(2, 24)), x.mean((2, 3, 4)))
    weight, bias = s3d.classifier[1].weight, s3d.classifier[1].bias
    wanted = F.conv3d(x, weight, bias).mean((2, 3, 4))  # torchvision: classify every place, then the mean
    torch.testing.assert_close(s3d(frames(2, 24)), wanted)


@pytest.mark.slow
@torch.inference_mode()
def test_s3dg_layer_by_layer(s3dg: S3dG) -> None:
    state = s3dg.state_dict()

    def conv(x: Tensor, at: str, pads: tuple[int, ...] | None = None) -> Tensor:
        for k in ("1", "2") if f"{at}.conv2.weight" in state else ("1",):
            weight = state[f"{at}.conv{k}.weight"]
            padding = pads or [n // 2 for n in weight.shape[2:]]
            x = norm_relu(F.conv3d(x, weight, padding=padding), state, f"{at}.bn{k}", 1e-5)
        return x

    def gate(x: Tensor, at: str) -> Tensor:
        scale = F.linear(x.mean((2, 3, 4)), state[f"{at}.fc.weight"], state[f"{at}.fc.bias"])
        return x * scale.sigmoid()[:, :, None, None, None]

    def mixed(x: Tensor, at: str) -> Tensor:
        b1, b2 = (conv(conv(x, f"{at}.conv_b{b}_a"), f"{at}.conv_b{b}_b") for b in (1, 2))
        b3 = conv(F.max_pool3d(x, 3, 1, 1), f"{at}.conv_b3_b")
        branches = (conv(x, f"{at}.conv_b0"), b1, b2, b3)
        return torch.cat([gate(b, f"{at}.gating_b{k}") for k, b in enumerate(branches)], dim=1)

    cubes = [frames(3)[:, :, t::2, h::2, w::2] for t, h, w in itertools.product((0, 1), repeat=3)]
    x = conv(torch.cat(cubes, dim=1), "conv1", (1, 2, 2))[:, :, 1:, 1:, 1:]
    assert x.shape == (1, 64, 8, 32, 32)
    x = F.max_pool3d(F.pad(x, (0, 1, 0, 1)), (1, 3, 3), (1, 2, 2))
    x = gate(conv(conv(x, "conv_2b"), "conv_2c"), "gating")
    x = F.max_pool3d(F.pad(x, (0, 1, 0, 1)), (1, 3, 3), (1, 2, 2))
    for block in BLOCKS:
        if block == "4b":
            x = F.max_pool3d(F.pad(x, (0, 1, 0, 1, 0, 1)), 3, 2)
        if block == "5b":
            x = F.max_pool3d(x, 2, 2)
        x = mixed(x, f"mixed_{block}")
    torch.testing.assert_close(s3dg.pooled(frames(3)), x.mean((2, 3, 4)))
    wanted = x.mean((2, 3, 4)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(s3dg(frames(3)), wanted)


def test_space_to_depth_against_a_loop() -> None:
    x = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    wanted = torch.empty(2, 24, 2, 3, 4)
    for t, h, w, c in itertools.product(range(4), range(6), range(8), range(3)):
        channel = ((t % 2 * 2 + h % 2) * 2 + w % 2) * 3 + c
        wanted[:, channel, t // 2, h // 2, w // 2] = x[:, c, t, h, w]
    assert torch.equal(space_to_depth(x), wanted)
    with pytest.raises(
        ValueError, match="needs an even number of frames, height and width; got 5 frames of 6 x 8"
    ):
        space_to_depth(torch.zeros(1, 3, 5, 6, 8))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (2, 2), (3, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7])
def test_same_pooling_along_one_axis_by_hand(kernel: int, stride: int, length: int) -> None:
    """Zeros around, the odd one behind; as many windows as begin inside: TensorFlow's ceil(length / stride)."""
    values = torch.rand(length) + 0.1
    pad = max(kernel - stride, 0)
    padded = [0.0] * (pad // 2) + values.tolist() + [0.0] * (pad - pad // 2)
    starts = range(0, -(-length // stride) * stride, stride)
    wanted = torch.tensor([max(padded[s : s + kernel]) for s in starts])
    for axis in range(3):
        shape = [length if a == axis else 1 for a in range(3)]
        k, s = (tuple(n if a == axis else 1 for a in range(3)) for n in (kernel, stride))
        found = same_max_pool(values.reshape(1, 1, *shape), k, s)
        torch.testing.assert_close(found.flatten(), wanted)


@torch.inference_mode()
def test_padding_takes_part_in_the_maximum_over_words() -> None:
    module = TextModule(4, num_words=5, word_dim=3, width=6)
    ids = torch.tensor([[2, 5, 0], [2, 5, 5]])
    for row, words in enumerate(((2, 5, 0), (2, 5))):
        layers = [F.relu(module.fc1(module.word_embd.weight[w])) for w in words]
        wanted = module.fc2(torch.stack(layers).amax(0))
        torch.testing.assert_close(module(ids)[row], wanted)
    assert not torch.equal(module(ids)[0], module(ids)[1])


@pytest.mark.slow
@torch.inference_mode()
def test_few_and_odd_frames(s3d: S3d, s3dg: S3dG) -> None:
    for num in (2, 6, 30):
        assert s3dg.pooled(frames(0, num)).shape == (1, 1024)
    assert s3d.pooled(frames(0, 14)).shape == (1, 1024)
    with pytest.raises(ValueError, match="S3D needs at least 14 frames, got 13"):
        s3d.pooled(frames(0, 13))


@pytest.mark.slow
@torch.inference_mode()
def test_half_precision_is_close(s3d: S3d, s3dg: S3dG) -> None:
    """Relative error of the 1024-d feature: bf16 has 8 bits of mantissa, fp16 has 11; forty layers deep."""
    for net in (s3d, s3dg):
        full = net.pooled(frames(4, 14, 32))
        for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
            half = net.to(dtype).pooled(frames(4, 14, 32).to(dtype)).float()
            net.float()
            assert (half - full).norm() / full.norm() < tolerance
            assert half.isfinite().all()


@torch.inference_mode()
def test_resnext_of_one_block_is_a_plain_residual_block() -> None:
    net = shaken(ResNeXt3d((1,), num_classes=3, width=64))
    state = net.state_dict()

    def norm(x: Tensor, at: str) -> Tensor:
        values = (state[f"{at}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *values)

    clip = frames(5, 8, 32)
    x = norm(F.conv3d(clip, state["conv1.weight"], stride=(1, 2, 2), padding=3), "bn1").relu()
    x = F.max_pool3d(x, 3, 2, 1)
    y = norm(F.conv3d(x, state["layer1.0.conv1.weight"]), "layer1.0.bn1").relu()
    weight = state["layer1.0.conv2.weight"]  # (64, 2, 3, 3, 3): two channels by themselves
    pairs = [slice(g, g + 2) for g in range(0, 64, 2)]
    y = torch.cat([F.conv3d(y[:, g], weight[g], padding=1) for g in pairs], dim=1)
    y = norm(F.conv3d(norm(y, "layer1.0.bn2").relu(), state["layer1.0.conv3.weight"]), "layer1.0.bn3")
    short = norm(F.conv3d(x, state["layer1.0.downsample.0.weight"]), "layer1.0.downsample.1")
    wanted = F.linear((y + short).relu().mean((2, 3, 4)), state["fc.weight"], state["fc.bias"])
    torch.testing.assert_close(net(clip), wanted)


def test_words_become_ids(tmp_path: Path) -> None:
    listed = ["the", "cat", "don't", "Ärger"]
    for array in (np.array(listed), np.array(listed, dtype=object)):
        np.save(tmp_path / "dict.npy", array, allow_pickle=True)
        words = Words.load(tmp_path / "dict.npy")
        assert words.num_words == 4
        found = words.ids(["The cat, the dog; DON'T", "", "cat " * 9], max_words=4)
        assert found.tolist() == [[1, 2, 1, 3], [0, 0, 0, 0], [2, 2, 2, 2]]
        assert words.ids(["Ärger cat The"], 4, lower=False).tolist() == [[4, 2, 0, 0]]
    assert words.ids([]).shape == (0, 20)


def test_a_word_list_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[()]]:
            return (tmp_path / "ran").touch, ()

    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"is not an \.npy file with a list of words: the pickle requests "):
        Words.load(tmp_path / "evil.npy")
    assert not (tmp_path / "ran").exists()
    np.save(tmp_path / "numbers.npy", np.arange(3))
    with pytest.raises(ValueError, match="must contain strings, but has dtype int64"):
        Words.load(tmp_path / "numbers.npy")
    (tmp_path / "other.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"is not an \.npy file with a list of words"):
        Words.load(tmp_path / "other.npy")
