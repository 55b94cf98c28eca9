"""Edges of losses: half-precision outputs, a batch of one row, no masked place, no matching row, rows in another order.

Values are finite, and so are gradients; half-precision outputs give the loss of the same numbers in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.cpc import Cpc
from vlpipe.models.objectives.images.memory_bank import MemoryBank
from vlpipe.models.objectives.images.moco import Moco, MocoV3
from vlpipe.models.objectives.images.nt_xent import NtXent
from vlpipe.models.objectives.infonce import InfoNce
from vlpipe.models.objectives.itc import Itc
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.objectives.masked_lm import DistilledMaskedLm, MaskedLm
from vlpipe.models.objectives.pairs.query_itc import QueryItc
from vlpipe.models.objectives.region import RegionClass, RegionFeatures
from vlpipe.models.objectives.region_kl import RegionKl
from vlpipe.models.objectives.region_mse import RegionMse
from vlpipe.models.objectives.regions.soft_class import SoftRegionClass
from vlpipe.models.objectives.sigmoid import Sigmoid
from vlpipe.models.objectives.video.frame_nce import FrameNce
from vlpipe.models.objectives.video.joint_mil import JointMil
from vlpipe.models.objectives.video.max_margin import MaxMargin
from vlpipe.models.objectives.video.mil_nce import MilNce
from vlpipe.models.objectives.word_region import WordRegion

E, CLASSES = 6, 7
HALVES = (torch.bfloat16, torch.float16)
Given = dict[str, Tensor]


class Stub(nn.Module):
    """What objectives ask of a model beside its outputs."""

    REGION_KINDS = ("feat", "obj")
    projection_dim = embed_dim = E
    num_rows, first_step = 9, 1
    config = SimpleNamespace(label_smoothing=0.1)

    def __init__(self) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.logit_bias = nn.Parameter(torch.tensor([-10.0]))
        self.head = torch.randn(E, CLASSES, generator=torch.Generator().manual_seed(3))

    def predict(self, hidden: Tensor) -> Tensor:
        return hidden.float() @ self.head

    predict_words = predict

    def predict_regions(self, hidden: Tensor, kind: str) -> Tensor:
        return self.predict(hidden)

    def true_frames(self, feats: Tensor) -> Tensor:
        return feats.flatten(0, 1)


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def pairs(num: int) -> Given:
    return {"image_feat": unit(num, E), "text_feat": unit(num, E)}


def clips(per_row: int, bag: int) -> Callable[[int], Given]:
    return lambda num: {
        "clip_feat": 3 * unit(num, per_row, E),
        "narration_feat": 3 * unit(num, per_row, bag, E),
    }


def two_views(name: str) -> Callable[[int], Given]:
    return lambda num: {name: unit(num, 2, E)}


def places(num: int) -> Given:
    return {"place_feats": unit(num, 3, 2, E), "row_predictions": unit(num, 2, 3, 2, E)}


CONTRASTS: dict[str, tuple[Callable[[], Objective], Callable[[int], Given]]] = {
    "infonce": (InfoNce, pairs),
    "sigmoid": (Sigmoid, pairs),
    "itc": (lambda: Itc(queue_size=8, alpha_ramp_epochs=0), pairs),
    "query_itc": (QueryItc, lambda num: {"image_feats": unit(num, 3, E), "text_feat": unit(num, E)}),
    "nt_xent": (NtXent, two_views("view_feats")),
    "memory_bank": (lambda: MemoryBank(num_negatives=4), two_views("view_feats")),
    "moco": (lambda: Moco(queue_size=8), lambda num: {"query": unit(num, E)}),
    "moco_v3": (MocoV3, two_views("queries")),
    "cpc": (Cpc, places),
    "mil_nce": (MilNce, clips(1, 3)),
    "joint": (JointMil, clips(2, 1)),
    "max_margin": (MaxMargin, clips(2, 1)),
    "max_margin as released": (lambda: MaxMargin(as_released=True), clips(1, 1)),
}


def contrast(name: str, given: Given) -> tuple[Tensor, Objective]:
    """The mean of a new objective's loss, whose queue has three rows; its teacher gives the same features, in reverse."""
    make, _ = CONTRASTS[name]
    torch.manual_seed(5)
    objective, model = make(), Stub()
    objective.bind(model)
    if hasattr(objective, "queue"):
        rows = [unit(3, E) for _ in objective.queue.names]
        objective.queue.push(rows, torch.arange(100, 103))
    num = len(next(iter(given.values())))
    mask = torch.ones(num, 1, 3, 2, dtype=torch.bool)
    streams = {"row": Stream(torch.arange(num)), "text": Stream(mask.long(), mask)}
    taught = {f"ema.{name}": value.detach() for name, value in given.items()}
    keys = {"ema.key": given["query"].detach()} if "query" in given else {}
    if "queries" in given:
        keys["ema.keys"] = given["queries"].detach()
    batch = Batch(streams, same=torch.arange(num))
    out = Outputs.of_features(model, batch, {**given, **taught, **keys})
    (loss,) = objective.LOSSES
    return mean(objective(out)[loss]), objective


def mean(term: Any) -> Tensor:
    assert isinstance(term, Term)
    found: Tensor = term.total / max(float(term.count), 1e-9) if float(term.count) else term.total
    return found


def check(loss: Tensor, leaves: Mapping[str, Tensor]) -> None:
    assert bool(loss.isfinite())
    if loss.requires_grad:
        loss.backward()
    for leaf in leaves.values():
        assert leaf.is_leaf
        assert leaf.grad is None or bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("name", CONTRASTS)
def test_contrasts_in_half_precision_and_of_one_row(name: str, num: int) -> None:
    torch.manual_seed(0)
    given = CONTRASTS[name][1](num)
    for dtype in (torch.float32, *HALVES):
        leaves = {key: value.clone().to(dtype).requires_grad_() for key, value in given.items()}
        loss, _ = contrast(name, leaves)
        whole, _ = contrast(name, {key: value.detach().float() for key, value in leaves.items()})
        torch.testing.assert_close(loss.detach(), whole.detach(), rtol=1e-6, atol=1e-6)
        check(loss, leaves)


@pytest.mark.parametrize("name", [name for name in CONTRASTS if name != "memory_bank"])  # draws by row
def test_contrasts_do_not_depend_on_the_order_of_rows(name: str) -> None:
    torch.manual_seed(0)
    given, order = CONTRASTS[name][1](5), torch.tensor([3, 0, 4, 2, 1])
    one, _ = contrast(name, given)
    other, _ = contrast(name, {key: value[order] for key, value in given.items()})
    torch.testing.assert_close(one, other)


MASKED: dict[str, Callable[[], Objective]] = {
    "features": lambda: RegionFeatures(matched_only=True),
    "all features": lambda: RegionFeatures(divide_by="all", matched_only=True),
    "classes": lambda: RegionClass(which="obj", matched_only=True),
    "kl": lambda: RegionKl(matched_only=True),
    "mse": lambda: RegionMse(matched_only=True),
    "soft classes": SoftRegionClass,
    "words": lambda: MaskedLm(matched_only=True),
    "distilled words": lambda: DistilledMaskedLm(matched_only=True, alpha_ramp_epochs=0),
    "frames": FrameNce,
}


def masked(num: int, dtype: torch.dtype, *, any_masked: bool, match: int) -> tuple[Outputs, Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(num, 5, E).to(dtype).requires_grad_()
    chosen, real = torch.full((num, 5), any_masked), torch.ones(num, 5, dtype=torch.bool)
    feats, ids = torch.randn(num, 5, CLASSES).to(dtype), torch.randint(0, CLASSES, (num, 5))
    extra = {"obj": ids, "obj_conf": torch.rand(num, 5), "prob": feats.float().softmax(-1).to(dtype)}
    target = {"masked": chosen, "feat": feats}
    words = {"ids": ids if any_masked else torch.full_like(ids, IGNORE), "match": torch.full((num,), match)}
    streams = {
        "regions": Stream(feats, real, extra, target),
        "video": Stream(
            feats[:, None], real[:, None], target={name: value[:, None] for name, value in target.items()}
        ),
        "text": Stream(ids, real, target=words),
    }
    model = Stub()
    frames = F.pad(hidden, (0, CLASSES - E))
    given = {"region_hidden": hidden, "word_hidden": hidden, "frame_prediction": frames}
    taught = {"ema.word_hidden": hidden.detach()}
    out = Outputs.of_features(model, Batch(streams, same=torch.arange(num)), {**given, **taught})
    out.teacher("ema").model = model
    return out, hidden


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("name", MASKED)
def test_masked_losses_with_nothing_to_count(name: str, num: int) -> None:
    for dtype in (torch.float32, *HALVES):
        for any_masked, match in ((True, 1), (False, 1), (True, 0)):
            out, hidden = masked(num, dtype, any_masked=any_masked, match=match)
            objective = MASKED[name]()
            found = objective(out)
            for value in found.values():
                assert isinstance(value, Term)
                assert bool(torch.as_tensor(value.total).isfinite())
            counts = objective.counts(out.batch)
            (loss,) = objective.LOSSES
            assert float(counts[loss]) == pytest.approx(float(found[loss].count))
            gated = getattr(objective, "matched_only", False)
            only_masked = name not in ("all features", "classes")
            if (not any_masked and only_masked) or (gated and not match):
                assert float(found[loss].total.detach()) == 0
            check(mean(found[loss]), {"hidden": hidden})


def test_a_text_of_special_tokens_alone_has_no_distance() -> None:
    """Without words, nothing is transported: no plan, no gradient, no value that is not a number."""
    for special_tokens in (False, True):
        torch.manual_seed(0)
        words, parts = torch.randn(2, 4, E).requires_grad_(), torch.randn(2, 6, E).requires_grad_()
        mask = torch.tensor([[True, True, False, False], [True] * 4])
        text = Stream(torch.zeros(2, 4).long(), mask, target={"match": torch.tensor([0, 1])})
        batch = Batch({"text": text, "image": Stream(torch.zeros(2, 3, 4, 4))}, same=torch.arange(2))
        out = Outputs(Stub(), batch, given={"fused": {"text": words, "image": parts}})
        term = WordRegion(special_tokens=special_tokens)(out)["word_region"]
        check(mean(term), {"words": words, "parts": parts})
        assert words.grad is not None
        assert bool(words.grad[0].any()) == special_tokens


def test_a_prompt_that_fills_the_text_leaves_nothing_to_write() -> None:
    hidden = torch.randn(2, 4, E).requires_grad_()
    text = Stream(torch.ones(2, 4).long(), torch.ones(2, 4).bool(), {"prompt": torch.tensor([4, 4])})
    out = Outputs(Stub(), Batch({"text": text}, same=torch.arange(2)), given={"decoder_hidden": hidden})
    term = Lm(label_smoothing=0.1)(out)["lm"]
    assert (float(term.total.detach()), int(term.count)) == (0, 0)
    check(mean(term), {"hidden": hidden})
