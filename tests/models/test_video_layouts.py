"""Names and shapes of published video networks, from the papers' tables, not from our modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlpipe.models.video.resnext3d import ResNeXt3d
from vlpipe.models.video.s3d import S3d, to_torchvision
from vlpipe.models.video.s3dg import S3dG
from vlpipe.models.weights.published import read_state

Shape = tuple[int, ...]
Table = dict[str, Shape]

# in | b0 | b1: 1x1, 3x3 | b2: 1x1, 3x3 | b3
MIXED = {
    "3b": "192|64|96 128|16 32|32",
    "3c": "256|128|128 192|32 96|64",
    "4b": "480|192|96 208|16 48|64",
    "4c": "512|160|112 224|24 64|64",
    "4d": "512|128|128 256|24 64|64",
    "4e": "512|112|144 288|32 64|64",
    "4f": "528|256|160 320|32 128|128",
    "5b": "832|256|160 320|32 128|128",
    "5c": "832|384|192 384|48 128|128",
}
# Where each Inception block stands in torchvision's and kylemin's list of layers (pools and convolutions count too).
PLACES = {"3b": 5, "3c": 6, "4b": 8, "4c": 9, "4d": 10, "4e": 11, "4f": 12, "5b": 14, "5c": 15}


def widths(block: str) -> tuple[int, ...]:
    return tuple(int(n) for n in MIXED[block].replace("|", " ").split())


def conv_bn(conv: str, bn: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{conv}.weight", shape
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{bn}.{name}", shape[:1]
    yield f"{bn}.num_batches_tracked", ()


def kylemin() -> Table:
    """S3D of Kinetics as kylemin names it, less `module.`."""

    def basic(at: str, out: int, inp: int) -> Iterator[tuple[str, Shape]]:
        yield from conv_bn(f"{at}.conv", f"{at}.bn", (out, inp, 1, 1, 1))

    def separable(at: str, out: int, inp: int, k: int) -> Iterator[tuple[str, Shape]]:
        yield from conv_bn(f"{at}.conv_s", f"{at}.bn_s", (out, inp, 1, k, k))
        yield from conv_bn(f"{at}.conv_t", f"{at}.bn_t", (out, out, k, 1, 1))

    found: Table = {"fc.0.weight": (400, 1024, 1, 1, 1), "fc.0.bias": (400,)}
    found |= separable("base.0", 64, 3, 7)
    found |= basic("base.2", 64, 64)
    found |= separable("base.3", 192, 64, 3)
    for block, place in PLACES.items():
        inp, b0, b1a, b1, b2a, b2, b3 = widths(block)
        at = f"base.{place}"
        found |= basic(f"{at}.branch0.0", b0, inp)
        found |= basic(f"{at}.branch1.0", b1a, inp)
        found |= separable(f"{at}.branch1.1", b1, b1a, 3)
        found |= basic(f"{at}.branch2.0", b2a, inp)
        found |= separable(f"{at}.branch2.1", b2, b2a, 3)
        found |= basic(f"{at}.branch3.1", b3, inp)
    return found


def torchvision() -> Table:
    """S3D of Kinetics as torchvision names it: nested Sequentials, and a branch0 that is not nested."""

    def unit(at: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
        yield from conv_bn(f"{at}.0", f"{at}.1", shape)

    def separable(at: str, out: int, inp: int, k: int) -> Iterator[tuple[str, Shape]]:
        yield from unit(f"{at}.0", (out, inp, 1, k, k))
        yield from unit(f"{at}.1", (out, out, k, 1, 1))

    found: Table = {"classifier.1.weight": (400, 1024, 1, 1, 1), "classifier.1.bias": (400,)}
    found |= separable("features.0", 64, 3, 7)
    found |= unit("features.2", (64, 64, 1, 1, 1))
    found |= separable("features.3", 192, 64, 3)
    for block, place in PLACES.items():
        inp, b0, b1a, b1, b2a, b2, b3 = widths(block)
        at = f"features.{place}"
        found |= unit(f"{at}.branch0", (b0, inp, 1, 1, 1))
        found |= unit(f"{at}.branch1.0", (b1a, inp, 1, 1, 1))
        found |= separable(f"{at}.branch1.1", b1, b1a, 3)
        found |= unit(f"{at}.branch2.0", (b2a, inp, 1, 1, 1))
        found |= separable(f"{at}.branch2.1", b2, b2a, 3)
        found |= unit(f"{at}.branch3.1", (b3, inp, 1, 1, 1))
    return found


def mil_nce(space_to_depth: bool = True, text: bool = True) -> Table:
    """S3D-G of MIL-NCE."""

    def plain(at: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
        yield from conv_bn(f"{at}.conv1", f"{at}.bn1", shape)

    def separable(at: str, out: int, inp: int) -> Iterator[tuple[str, Shape]]:
        yield from conv_bn(f"{at}.conv1", f"{at}.bn1", (out, inp, 1, 3, 3))
        yield from conv_bn(f"{at}.conv2", f"{at}.bn2", (out, out, 3, 1, 1))

    def linear(at: str, out: int, inp: int) -> Table:
        return {f"{at}.weight": (out, inp), f"{at}.bias": (out,)}

    found = linear("fc", 512, 1024) | linear("gating.fc", 192, 192)
    found |= plain("conv1", (64, 24, 2, 4, 4) if space_to_depth else (64, 3, 3, 7, 7))
    found |= plain("conv_2b", (64, 64, 1, 1, 1))
    found |= separable("conv_2c", 192, 64)
    for block in MIXED:
        inp, b0, b1a, b1, b2a, b2, b3 = widths(block)
        at = f"mixed_{block}"
        found |= plain(f"{at}.conv_b0", (b0, inp, 1, 1, 1))
        found |= plain(f"{at}.conv_b1_a", (b1a, inp, 1, 1, 1))
        found |= separable(f"{at}.conv_b1_b", b1, b1a)
        found |= plain(f"{at}.conv_b2_a", (b2a, inp, 1, 1, 1))
        found |= separable(f"{at}.conv_b2_b", b2, b2a)
        found |= plain(f"{at}.conv_b3_b", (b3, inp, 1, 1, 1))
        for branch, width in enumerate((b0, b1, b2, b3)):
            found |= linear(f"{at}.gating_b{branch}.fc", width, width)
    if text:
        found["text_module.word_embd.weight"] = (66250, 300)
        found |= linear("text_module.fc1", 2048, 300) | linear("text_module.fc2", 512, 2048)
    return found


def resnext101() -> Table:
    """ResNeXt-101 3D of 3D-ResNets-PyTorch: 32 groups, so a 3 x 3 x 3 kernel sees width / 32 channels."""
    found: Table = dict(conv_bn("conv1", "bn1", (64, 3, 7, 7, 7)))
    inp = 64
    for layer, (depth, width) in enumerate(((3, 128), (4, 256), (23, 512), (3, 1024)), 1):
        for block in range(depth):
            at = f"layer{layer}.{block}"
            found |= conv_bn(f"{at}.conv1", f"{at}.bn1", (width, inp, 1, 1, 1))
            found |= conv_bn(f"{at}.conv2", f"{at}.bn2", (width, width // 32, 3, 3, 3))
            found |= conv_bn(f"{at}.conv3", f"{at}.bn3", (2 * width, width, 1, 1, 1))
            if block == 0:
                found |= conv_bn(f"{at}.downsample.0", f"{at}.downsample.1", (2 * width, inp, 1, 1, 1))
            inp = 2 * width
    return found | {"fc.weight": (400, 2048), "fc.bias": (400,)}


def shapes(net: nn.Module) -> Table:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def num_params(table: Table) -> int:
    counted = (s for n, s in table.items() if "running_" not in n and "num_batches" not in n)
    return sum(int(torch.Size(shape).numel()) for shape in counted)


def random_state(table: Table, seed: int = 0) -> dict[str, Tensor]:
    """Weights that let every layer matter: BatchNorms that shift and scale, variances above 0."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in table.items():
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(7)
        elif len(shape) == 1:
            found[name] = torch.rand(shape, generator=draw) + (0.5 if "bias" not in name else -0.4)
        else:
            fan_in = torch.Size(shape[1:]).numel()
            found[name] = torch.randn(shape, generator=draw) * (2 / fan_in) ** 0.5
    return found


@pytest.fixture
def clip() -> Tensor:
    return torch.rand((1, 3, 16, 64, 64), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("net", "table", "num_keys", "num"),
    [
        (S3d, torchvision(), 464, 8_320_048),
        (S3dG, mil_nce(), 537, 31_211_336),
        (lambda: S3dG(num_words=0), mil_nce(text=False), 532, 9_670_800),
        (ResNeXt3d, resnext101(), 626, 48_340_816),
    ],
    ids=["s3d", "s3dg", "s3dg-video", "resnext101"],
)
def test_names_and_shapes_are_those_published(
    net: Callable[[], nn.Module], table: Table, num_keys: int, num: int
) -> None:
    built = net()
    assert shapes(built) == table
    assert len(table) == num_keys
    assert num_params(table) == sum(p.numel() for p in built.parameters()) == num


def test_the_text_side_alone_and_the_other_stem() -> None:
    text = {n: s for n, s in mil_nce().items() if n.startswith("text_module.")}
    assert num_params(text) == 21_540_536
    assert shapes(S3dG(space_to_depth=False, num_words=0)) == mil_nce(space_to_depth=False, text=False)


def test_kylemins_names_become_torchvisions() -> None:
    theirs = kylemin()
    assert len(theirs) == 464
    state = random_state(theirs)
    for prefix in ("", "module."):
        renamed = to_torchvision({prefix + n: v for n, v in state.items()})
        assert {n: tuple(v.shape) for n, v in renamed.items()} == torchvision()
    assert to_torchvision(renamed) == renamed  # torchvision's own names stay


@torch.inference_mode()
def test_renamed_weights_give_the_same_output(clip: Tensor, tmp_path: Path) -> None:
    theirs = random_state(kylemin())
    ours = S3d()
    ours.load_state_dict(to_torchvision(theirs))
    wanted = ours.eval()(clip)
    torch.save({f"module.{n}": v for n, v in theirs.items()}, tmp_path / "S3D_kinetics400.pt")
    found = S3d.load(tmp_path / "S3D_kinetics400.pt").eval()(clip)
    assert torch.equal(found, wanted)
    save_file(to_torchvision(theirs), tmp_path / "s3d.safetensors")
    assert torch.equal(S3d.load(tmp_path / "s3d.safetensors").eval()(clip), wanted)


def small_mil_nce(space_to_depth: bool = True, text: bool = True) -> Table:
    """With 50 words instead of 66,249, so that files are small."""
    table = mil_nce(space_to_depth, text)
    return table | ({"text_module.word_embd.weight": (51, 300)} if text else {})


@pytest.mark.slow
@torch.inference_mode()
def test_every_form_of_a_mil_nce_checkpoint_loads_to_the_same_network(clip: Tensor, tmp_path: Path) -> None:
    state = random_state(small_mil_nce())
    training = {
        "epoch": 3,
        "state_dict": {f"module.{n}": v for n, v in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
        "scheduler": {"base_lrs": [1e-3], "lr_lambdas": [None]},
    }
    torch.save(state, tmp_path / "bare.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(training, tmp_path / "training.pth.tar")
    nets = [S3dG.load(tmp_path / name).eval() for name in ("bare.pth", "old.pth", "training.pth.tar")]
    ids = torch.tensor([[3, 50, 0, 0]])
    for net in nets:
        assert net.space_to_depth
        assert torch.equal(net(clip), nets[0](clip))
        assert torch.equal(net.text(ids), nets[0].text(ids))


@pytest.mark.slow
@torch.inference_mode()
def test_the_stem_and_the_missing_text_side_are_seen(clip: Tensor) -> None:
    other = S3dG.from_state(random_state(small_mil_nce(space_to_depth=False))).eval()
    assert not other.space_to_depth
    assert other(clip).shape == (1, 512)
    video = S3dG.from_state(random_state(small_mil_nce(text=False))).eval()
    assert torch.equal(video(clip), S3dG.from_state(random_state(small_mil_nce(text=False))).eval()(clip))
    with pytest.raises(ValueError, match=r"S3D-G: these weights have no text encoder \(text_module\.\*\)"):
        video.text(torch.zeros((1, 4), dtype=torch.long))


def test_a_resnext_is_read_off_its_names(clip: Tensor) -> None:
    net = ResNeXt3d((1, 1, 2, 1), num_classes=5, width=32)
    found = ResNeXt3d.from_state({f"module.{n}": v for n, v in net.state_dict().items()})
    assert shapes(found) == shapes(net)
    with torch.inference_mode():
        assert torch.equal(found.eval()(clip), net.eval()(clip))
    with pytest.raises(
        ValueError, match=r"needs tensors such as layer1\.0\.conv1\.weight and fc\.weight; the weights have"
    ):
        ResNeXt3d.from_state({"features.0.weight": torch.zeros(1)})


@pytest.mark.slow
def test_what_does_not_fit_is_named() -> None:
    state = random_state(kylemin())
    state["head.weight"] = state.pop("base.2.conv.weight")
    state["base.0.bn_s.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as caught:
        S3d.from_state(state)
    assert str(caught.value) == (
        "S3D: the weights do not fit: 1 missing: features.2.0.weight; 1 unknown: head.weight; "
        "1 of another shape: features.0.0.1.bias (3,) instead of (64,)"
    )
    with pytest.raises(ValueError, match=r"S3D-G: the weights do not fit: 455 missing: .*\.\.\.$"):
        S3dG.from_state({"fc.bias": torch.zeros(512)})
    partial = random_state(small_mil_nce())
    del partial["text_module.fc2.bias"]
    with pytest.raises(ValueError, match=r"1 missing: text_module\.fc2\.bias$"):
        S3dG.from_state(partial)


@pytest.mark.slow
def test_counters_of_batch_norm_may_be_missing() -> None:
    whole = random_state(kylemin())
    counters = [name for name in whole if "num_batches" in name]
    bare = {name: value for name, value in whole.items() if name not in counters}
    one, other = (S3d.from_state(state).state_dict() for state in (whole, bare))
    assert counters
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items() if "num_batches" not in name)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return Path(tmp_path / "ran").touch, ()  # type: ignore[return-value]

    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read as a file of tensors"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_folder_has_one_weights_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must contain exactly one file ending in .* it contains none"):
        read_state(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save({"x": torch.ones(2)}, tmp_path / name)
    with pytest.raises(ValueError, match=r"it contains a\.pth, b\.pth"):
        read_state(tmp_path)
    (tmp_path / "b.pth").unlink()
    assert read_state(tmp_path)["x"].tolist() == [1, 1]
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"must contain a dict name -> tensor, but contains a list"):
        read_state(tmp_path)
