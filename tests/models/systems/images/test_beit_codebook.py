"""DALL-E's encoder equals transformers' FlavaImageCodebook; codes of nearest patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from tests.models.parity import TOLERANCE, noisy, outputs, through_a_folder
from vlpipe.models import folder
from vlpipe.models.codebooks.base import MEAN, STD
from vlpipe.models.codebooks.dalle import DalleEncoder
from vlpipe.models.codebooks.patches import PatchCentroids
from vlpipe.models.interface.batch import Stream
from vlpipe.models.systems.images.beit import ImageCodebook
from vlpipe.stages.common import pixels as common


def theirs(**changes: Any) -> Any:
    """Its codes are about equally common."""
    sizes = {"hidden_size": 8, "num_blocks_per_group": 2, "vocab_size": 13}
    model = noisy(FlavaImageCodebook(FlavaImageCodebookConfig(**{**sizes, **changes})), but="nothing")
    logits = model(0.8 * torch.rand(20, 3, 32, 32) + 0.1)
    model.blocks.output.conv.bias.data -= logits.mean((0, 2, 3))
    return model


def normalised(values: torch.Tensor) -> torch.Tensor:
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize("depth", [1, 2])
def test_it_equals_transformers(tmp_path: Path, depth: int) -> None:
    """Their pixels are mapped from 0.1 to 0.9 by the processor."""
    reference = theirs(num_blocks_per_group=depth)
    model = through_a_folder(reference, tmp_path)
    values = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(model.codebook.logits(values), reference(0.8 * values + 0.1), **TOLERANCE)
    wanted = reference.get_codebook_indices(0.8 * values + 0.1).flatten(1)
    found = outputs(model, image=Stream(normalised(values))).image_codes
    assert found.shape == (5, 16)
    assert found.dtype == torch.int64
    assert torch.equal(found, wanted)
    assert len(wanted.unique()) > 2
    assert not any(p.requires_grad for p in model.parameters())


def test_it_opens_in_transformers(tmp_path: Path) -> None:
    reference = theirs()
    through_a_folder(reference, tmp_path / "theirs").export(tmp_path / "ours")
    again = FlavaImageCodebook.from_pretrained(tmp_path / "ours")
    for name, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    patches = ImageCodebook(
        codebook={"use": "patches:PatchCentroids", "num_codes": 3, "patch_size": 4}, image_size=8
    )
    with pytest.raises(ValueError, match="transformers has no codebook like patches:PatchCentroids"):
        patches.export(tmp_path / "none")
    theirs(num_groups=3).save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="wanted a codebook of 4 groups and 3 colours, got 3 and 3"):
        folder.load(tmp_path / "three")


def test_sizes_are_those_of_the_published_weights() -> None:
    with torch.device("meta"):
        ours, reference = DalleEncoder(), FlavaImageCodebook(FlavaImageCodebookConfig())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())
    assert ImageCodebook(codebook={"use": "dalle:DalleEncoder", "width": 8}).streams()["image"]["size"] == 112


def test_the_nearest_patch_is_the_code(tmp_path: Path) -> None:
    spec = {"use": "patches:PatchCentroids", "num_codes": 5, "patch_size": 4}
    model = ImageCodebook(codebook=spec, image_size=8)
    with pytest.raises(ValueError, match="no weights were loaded"):
        assert outputs(model, image=Stream(torch.randn(5, 3, 8, 8))).image_codes is None
    model.codebook.centroids.data.uniform_()
    values = torch.rand(5, 3, 8, 8)
    found = outputs(model, image=Stream(normalised(values))).image_codes
    for row in range(5):
        for place, (top, left) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
            patch = values[row, :, top : top + 4, left : left + 4].flatten()
            assert int(found[row, place]) == int((model.codebook.centroids - patch).square().sum(1).argmin())
    folder.save(model, tmp_path)
    again = folder.load(tmp_path)
    assert torch.equal(again.codebook(normalised(values)), found)
    with pytest.raises(ValueError, match="image_size must be a multiple of the codebook's 4 pixels, got 9"):
        ImageCodebook(codebook=spec, image_size=9)


def test_pixels_are_normalised_as_the_makers_do() -> None:
    assert (common.MEAN, common.STD) == (MEAN, STD)
    assert PatchCentroids(num_codes=2, patch_size=1).mean.flatten().tolist() == pytest.approx(MEAN)
