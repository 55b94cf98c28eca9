"""Accuracy under attack: the perturbation has the norm that is asked for, and does what a random one does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.parity import noisy
from tests.models.second_regions import rows
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.systems.regions.uniter import Uniter
from vlpipe.pipeline.files import Weights
from vlpipe.stages.evaluate.attack.masked import AttackedAccuracy, cross_entropy


def model() -> Uniter:
    torch.manual_seed(0)
    sizes = {"feat_dim": 10, "num_objects": 7, "width": 24, "layers": 2, "heads": 3, "max_text_length": 12}
    found = noisy(Uniter(vocab_size=37, **sizes), but="nothing")
    assert isinstance(found, Uniter)
    return found


def batch() -> Batch:
    """The view `text` has masked words, `regions` masked regions; the other stream is whole."""
    text, regions = rows()
    whole = {
        "text": Stream(text.data, text.mask),
        "regions": Stream(regions.target["feat"], regions.mask, regions.extra),
    }
    return Batch(whole, same=torch.arange(5), views={"text": {"text": text}, "regions": {"regions": regions}})


@pytest.mark.parametrize("stream", ["text", "regions"])
@pytest.mark.parametrize("attacked", [["regions"], ["text"], ["text", "regions"]])
def test_an_attack_has_its_norm_and_raises_the_loss(stream: str, attacked: list[str], tmp_path: Path) -> None:
    weights = Weights(path=str(tmp_path))
    uniter, found = model(), batch()
    losses = {}
    for norm in (1e-9, 0.5, 2.0):
        stage = AttackedAccuracy(model=weights, corrupt={stream: ["any"]}, norm=norm, attacked=attacked)
        with torch.no_grad():
            for partner, out in stage.seen(uniter, found, stream):
                losses[partner, norm] = float(cross_entropy(out, stream))
                moved = out.batch.stream("regions").data - found.view(stream).stream("regions").data
                lengths = moved.flatten(1).norm(dim=1)
                if partner == "attacked" and "regions" in attacked:
                    assert bool((lengths < norm * 1.0001 + 1e-7).all())
                    assert bool((lengths > 0.5 * norm - 1e-7).all())
                else:
                    assert not moved.any()
    assert losses["attacked", 1e-9] == pytest.approx(losses["true", 1e-9], rel=1e-5)
    assert losses["true", 0.5] < losses["attacked", 0.5] < losses["attacked", 2.0]
    assert not any(parameter.grad is not None for parameter in uniter.parameters())


def test_an_attack_needs_a_stream(tmp_path: Path) -> None:
    stage = AttackedAccuracy(
        model=Weights(path=str(tmp_path)), corrupt={"text": ["any"]}, norm=1.0, attacked=[]
    )
    assert stage.preflight() == ["attacked: wanted a stream, got none"]
