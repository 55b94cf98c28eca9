"""`NvJpegImage` with a stand-in for torchvision, which has no build for CPUs: its decoder is libjpeg-turbo."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image as Pictures

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.augment import Augmentation
from vlpipe.stages.loading.corruptors.mask_patches import MaskPatches
from vlpipe.stages.loading.corruptors.mismatch import Mismatch
from vlpipe.stages.loading.makers.image import Image
from vlpipe.stages.loading.makers.nvjpeg import NvJpegImage
from vlpipe.stages.loading.rows import Row

CPU = torch.device("cpu")


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_jpeg(files: list[torch.Tensor], *, mode: str, device: torch.device) -> list[torch.Tensor]:
        assert mode == "RGB"
        try:
            found = [simplejpeg.decode_jpeg(file.numpy().tobytes()) for file in files]
        except ValueError as error:
            raise RuntimeError(str(error)) from error
        return [torch.from_numpy(pixels).permute(2, 0, 1).to(device) for pixels in found]

    io_: Any = ModuleType("torchvision.io")
    io_.decode_jpeg, io_.ImageReadMode = decode_jpeg, type("ImageReadMode", (), {"RGB": "RGB"})
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.io", io_)


def picture(number: int, kind: str = "JPEG", **how: Any) -> bytes:
    """A smooth picture of its own size."""
    noise = np.random.default_rng(number).integers(0, 255, (5, 6, 3), np.uint8)
    file = io.BytesIO()
    Pictures.fromarray(noise).resize((90 + number, 70)).save(file, kind, **how)
    return file.getvalue()


def row(encoded: bytes) -> Row:
    return Row("a", 0, [""], {"image": encoded})


AUGMENTATIONS = [None, Augmentation(crop_scale=(0.3, 1.0), flip=True)]


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=["whole", "augmented"])
def test_it_gives_the_pictures_of_the_cpu(augment: Augmentation | None) -> None:
    """Crops and flips too; a PNG, and a JPEG that is stored turned, are prepared on the CPU."""
    exif = Pictures.Exif()
    exif[274] = 6
    files = [picture(k, quality=95) for k in range(6)]
    files += [
        picture(6, "PNG"),
        picture(7, quality=95, exif=exif.tobytes()),
        picture(8, quality=95).replace(b"", b""),
    ]
    found = []
    for maker in (Image(size=32, augment=augment), NvJpegImage(size=32, augment=augment)):
        items = [maker(row(file), "a dog", np.random.default_rng(k)) for k, file in enumerate(files)]
        found.append(maker.on_device(maker.to_device(maker.collate(items), CPU)))
        assert found[-1].data.shape == (len(files), 3, 32, 32)
        assert (found[-1].mask, found[-1].extra) == (None, {})
    wanted, got = (stream.data for stream in found)
    assert torch.equal(wanted[6:8], got[6:8])
    levels = (
        (wanted - got).abs().mean((1, 2, 3)) * 0.27 * 255
    )  # 0.27: about the deviation that they are divided by
    assert levels.max() < 2.0
    other = (wanted - wanted.flip(3)).abs().mean((1, 2, 3)) * 0.27 * 255
    assert other[:6].min() > 10.0  # mirrored or cut elsewhere they would differ by far more


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    "corruptor", [MaskPatches(patch=8), Mismatch(stream="image")], ids=["masked", "mismatched"]
)
def test_what_corruptors_record_stays(corruptor: Any) -> None:
    found = []
    for maker in (Image(size=32), NvJpegImage(size=32)):
        makers = {"image": maker, "text": None}
        samples = [
            {
                "image": maker(row(picture(k)), "", np.random.default_rng(k)) | {"row": np.array([k])},
                "text": {},
            }
            for k in range(4)
        ]
        changed = corruptor(samples, lambda k: np.random.default_rng(k), makers)
        stream = maker.to_device(maker.collate([sample["image"] for sample in changed]), CPU)
        assert stream.data.shape == (4, 3, 32, 32)
        found.append(
            {**stream.extra, **{f"target {k}": v for k, v in stream.target.items()}, **stream.places}
        )
    wanted, got = found
    assert wanted.keys() == got.keys()
    assert wanted
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


@pytest.mark.usefixtures("torchvision")
def test_a_batch_is_as_large_as_its_files() -> None:
    maker = NvJpegImage(size=32)
    files = [picture(0), picture(1), picture(2, "PNG")]
    stream = maker.collate([maker(row(file), "", np.random.default_rng(0)) for file in files])
    assert len(stream.data) == len(files[0]) + len(files[1]) + 3 * 32 * 32
    assert (stream.mask, stream.places) == (None, {})


@pytest.mark.usefixtures("torchvision")
def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="NvJpegImage has no randaugment"):
        NvJpegImage(size=32, augment=Augmentation(randaugment=(2, 5)))
    maker = NvJpegImage(size=32)
    item = maker(row(picture(1)[:-300]), "", np.random.default_rng(0))
    with pytest.raises(VlpipeError, match="nvJPEG cannot decode a JPEG of this batch"):
        maker.to_device(maker.collate([item]), CPU)


def test_it_needs_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(ValueError, match="NvJpegImage needs torchvision"):
        NvJpegImage(size=32)
