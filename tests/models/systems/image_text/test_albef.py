"""ALBEF against a second implementation, written from the paper's formulas: outputs, losses and gradients to 1e-5."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy
from tests.models.second_albef import HEADS, feats, image_tokens, second, text_tokens
from tests.models.second_transformer import WORDS, pairs
from vlpipe.models import folder
from vlpipe.models.interface.batch import IGNORE, Batch, Step, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.itc import Itc
from vlpipe.models.objectives.itm import Itm
from vlpipe.models.objectives.masked_lm import DistilledMaskedLm, MaskedLm
from vlpipe.models.systems.image_text.albef import Albef
from vlpipe.models.teachers import Ema
from vlpipe.stages.train.build import Net

SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "image_size": 16,
    "patch_size": 8,
    "vision_width": 20,
    "vision_layers": 2,
    "vision_heads": HEADS,
    "text_width": 16,
    "text_layers": 2,
    "fusion_layers": 2,
    "text_heads": HEADS,
    "max_text_length": 12,
    "embed_dim": 8,
    "dropout": 0.0,
}
ITC: dict[str, Any] = {"queue_size": 7, "alpha_ramp_epochs": 1.0, "share": False, "kl": True}


def albef(**changes: Any) -> Albef:
    model: Albef = noisy(Albef(**SIZES | changes), but="temp")
    return model


def batch_of(seed: int = 0, same: list[int] | None = None, progress: float = 0.5) -> Batch:
    return replace(pairs(seed, same), step=Step(progress=progress))


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def net_of(model: Albef, *objectives: Any, momentum: float = 0.5, view: str = "mlm") -> Net:
    """Trains with these; those of masked words look at `view`."""
    found = [(1.0, view if isinstance(o, MaskedLm) else "", o) for o in objectives]
    return Net(model, found, {"ema": Ema(momentum=momentum)}).train()


def test_losses_and_all_gradients_are_those_of_the_second_implementation() -> None:
    """Second step: the teacher is not the student, and the queue holds the momentum features of the first."""
    model, first, batch = albef(), batch_of(0), batch_of(1)
    old = weights(model)
    net = net_of(model, Itc(**ITC), Itm(negatives="momentum"), DistilledMaskedLm())
    net(first)
    ids, mask = first.streams["text"].data, first.streams["text"].mask
    assert mask is not None
    with torch.no_grad():
        queue = feats(old, image_tokens(old, first.streams["image"].data), text_tokens(old, ids, mask))
        for p in model.parameters():
            if p.ndim:
                p.add_(0.1 * torch.randn_like(p))
    w = {name: value.requires_grad_() for name, value in weights(model).items()}
    m = {name: 0.5 * old[name] + 0.5 * value.detach() for name, value in w.items()}
    torch.manual_seed(5)
    found = {name: value.total / value.count for name, value in net(batch).items() if name in net.losses}
    wanted = second(w, m, batch, queue, alpha=0.4 * 0.5, seed=5)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], **TOLERANCE)
    sum(found.values()).backward()
    sum(wanted.values()).backward()
    tied = {"word_head.decoder.weight"}  # stored under two names
    assert {n for n, p in model.named_parameters() if p.grad is None} == set()
    for name, p in model.named_parameters():
        assert name not in tied
        torch.testing.assert_close(p.grad, w[name].grad, **TOLERANCE, msg=lambda text, n=name: f"{n}: {text}")


def values(net: Net, batch: Batch, seed: int = 2) -> dict[str, float]:
    torch.manual_seed(seed)
    found = net(batch)
    return {n: (v.total / v.count).item() for n, v in found.items() if n in net.losses}


def test_without_distillation_the_losses_are_the_plain_ones() -> None:
    """alpha 0, and the start of the ramp, whatever the teacher says."""
    model, batch = albef(), batch_of()
    for off in (batch_of(progress=0.0), batch):
        alpha = 0.4 if off.step.progress == 0 else 0.0
        net = net_of(
            model, Itc(**ITC | {"queue_size": 0}, alpha=alpha), DistilledMaskedLm(alpha=alpha), momentum=0.0
        )
        for p in net.teachers["ema"].copy.parameters():
            p.data.mul_(1.3)
        net.update_teachers = lambda: None  # type: ignore[method-assign]
        out = net.outputs(off)
        plain = MaskedLm()(out.view("mlm"))["mlm"]
        found = values(net, off)
        assert found["mlm"] == pytest.approx((plain.total / plain.count).item(), rel=1e-6)
        logits = out.image_feat @ out.teacher("ema").text_feat.t() / 0.07
        other = out.text_feat @ out.teacher("ema").image_feat.t() / 0.07
        own = torch.arange(5)
        wanted = (F.cross_entropy(logits, own) + F.cross_entropy(other, own)) / 2
        assert found["itc"] == pytest.approx(wanted.item(), rel=1e-5)


def test_a_teacher_that_agrees_costs_nothing() -> None:
    """Distillation alone (alpha 1) from a copy of the student: the divergence is 0 and so is its gradient."""
    model = albef()
    masked = DistilledMaskedLm(alpha=1.0, alpha_ramp_epochs=0)
    net = net_of(model, masked, momentum=0.0)
    term = net(batch_of())["mlm"]
    assert (term.total / term.count).item() == pytest.approx(0, abs=1e-5)
    term.total.backward()
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) < 1e-4


@pytest.mark.parametrize("which", ["itc", "mlm"])
def test_the_code_s_cross_entropy_is_the_divergence_and_a_constant(which: str) -> None:
    """Other values, the same gradients."""
    found = {}
    for kl_ in (True, False):
        torch.manual_seed(0)
        model = albef()
        one: Any = (
            Itc(**ITC | {"kl": kl_, "alpha_ramp_epochs": 0}) if which == "itc" else DistilledMaskedLm(kl=kl_)
        )
        net = net_of(model, one, momentum=0.9)
        for p in model.parameters():
            p.data.add_(0.05)
        term = net(batch_of())[which]
        term.total.backward()
        found[kl_] = term.total.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found[True][0] < found[False][0] - 0.1
    for name, grad in found[True][1].items():
        torch.testing.assert_close(grad, found[False][1][name], rtol=1e-4, atol=1e-6)


def test_the_teacher_moves_before_it_makes_keys() -> None:
    model, batch = albef(), batch_of()
    itc = Itc(**ITC)
    net = net_of(model, itc, momentum=0.75)
    before = weights(net.teachers["ema"].copy)
    for p in model.parameters():
        p.data.add_(0.1)
    net(batch)
    now, copy = weights(model), net.teachers["ema"].copy
    torch.testing.assert_close(weights(copy), {n: 0.75 * before[n] + 0.25 * now[n] for n in now})
    out = Outputs(copy, batch, grad=False)
    (images, texts), ids = itc.queue.rows()
    torch.testing.assert_close(images, out.image_feat)
    torch.testing.assert_close(texts, out.text_feat)
    assert ids.tolist() == batch.same.tolist()


def test_queued_features_wrap_around_at_any_batch_size() -> None:
    """Batches of 5, 3, 5 and 2 through a queue of 7: it holds the newest 7, each in the slot of its number modulo 7."""
    model = albef()
    itc = Itc(**ITC)
    net = net_of(model, itc, momentum=1.0)
    numbers: list[int] = []
    for seed, num in enumerate((5, 3, 5, 2)):
        rows = replace(batch_of(seed).rows(slice(0, num)), same=torch.arange(num) + 100 * seed)
        net(rows)
        numbers += rows.same.tolist()
    newest = {k % 7: number for k, number in list(enumerate(numbers))[-7:]}
    assert itc.queue.rows()[1].tolist() == [newest[slot] for slot in range(7)]


def test_negatives_are_never_of_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 0 and 3 show one picture; 40 draws of each kind."""
    model, same = albef(), [0, 1, 2, 0, 4]
    model.temp.data.fill_(0.5)
    seen: list[Any] = []
    paired = Outputs.paired
    monkeypatch.setattr(
        Outputs, "paired", lambda self, rows, **more: seen.append(rows) or paired(self, rows, **more)
    )
    net = net_of(model, Itm(negatives="momentum"))
    for seed in range(40):
        values(net, batch_of(0, same), seed)
    drawn = Counter()
    for rows in seen:
        texts, images = (rows[name].tolist() for name in ("text", "image"))
        assert texts[:10] == [*range(5)] * 2
        assert images[:5] == images[10:] == [*range(5)]
        drawn.update(("image", i, v) for i, v in enumerate(images[5:10]))
        drawn.update(("text", i, t) for i, t in enumerate(texts[10:]))
    assert all(same[i] != same[j] for _, i, j in drawn)
    allowed = sum(same[i] != same[j] for i in range(5) for j in range(5))
    assert len(drawn) == 2 * allowed  # each other picture is drawn at some time


def one_by_one(model: Albef, seed: int) -> Batch:
    """A batch whose hardest negatives stand out, so that all draws take them."""
    model.temp.data.fill_(1e-3)
    for k in range(seed, seed + 200):
        batch = batch_of(k)
        out = Outputs(model, batch, grad=False)
        sims = out.image_feat @ out.text_feat.t()
        best = [d.fill_diagonal_(-9).topk(2, dim=1).values for d in (sims.clone(), sims.t().clone())]
        if min((b[:, 0] - b[:, 1]).min() for b in best) > 0.02:
            return batch
    raise AssertionError("no such batch among 200")


def test_order_and_padding_change_nothing() -> None:
    model = albef()
    batch = one_by_one(model, 0)
    found = values(net_of(model, Itc(**ITC), Itm(), DistilledMaskedLm()), batch)
    order = torch.tensor([2, 4, 0, 3, 1])
    moved = values(net_of(model, Itc(**ITC), Itm(), DistilledMaskedLm()), batch.rows(order))

    def wider(name: str, stream: Stream) -> Stream:
        if name != "text":
            return stream
        assert stream.mask is not None
        more = torch.nn.functional.pad
        target = {k: more(v, (0, 3), value=IGNORE) for k, v in stream.target.items()}
        return Stream(
            more(stream.data.masked_fill(~stream.mask, 6), (0, 3), value=9),
            more(stream.mask, (0, 3)),
            target=target,
        )

    padded = values(net_of(model, Itc(**ITC), Itm(), DistilledMaskedLm()), batch.map_streams(wider))
    for name, value in found.items():
        assert moved[name] == pytest.approx(value, rel=1e-5), name
        assert padded[name] == pytest.approx(value, rel=1e-5), name


def test_each_picture_and_each_text_is_encoded_once() -> None:
    """One pass of images for three losses; texts twice, as they are and masked; the teacher as often."""
    model = albef()
    net = net_of(model, Itc(**ITC), Itm(negatives="momentum"), DistilledMaskedLm())
    asked: Counter[str] = Counter()
    for who, one in (("student", model), ("teacher", net.teachers["ema"].copy)):
        for part in ("vision", "text"):
            getattr(one, part).register_forward_hook(lambda *_, k=(who, part): asked.update([k]))
    net(batch_of())
    assert asked == {(w, p): 1 + (p == "text") for w in ("student", "teacher") for p in ("vision", "text")}


def test_a_text_that_saw_no_image_knows_none() -> None:
    model, batch = albef(), batch_of()
    other = replace(batch, streams={**batch.streams, "image": Stream(torch.randn(5, 3, 16, 16))})
    one, two = (Outputs(model, b, grad=False) for b in (batch, other))
    assert torch.equal(one.text_feat, two.text_feat)
    assert not torch.allclose(one.match, two.match)
    assert not torch.allclose(one.fused["text"], two.fused["text"])


def test_a_saved_model_goes_on_with_larger_images(tmp_path: Path) -> None:
    """As for finetuning; the class token's position stays, and tied words stay tied."""
    model = albef()
    folder.save(model, tmp_path)
    larger = folder.load(tmp_path, image_size=32)
    assert larger.patches.positions.shape == (1, 17, 20)
    assert torch.equal(larger.patches.positions[:, 0], model.patches.positions[:, 0])
    assert larger.word_head.decoder.weight is larger.text.embed.words.weight
    same = folder.load(tmp_path).eval()
    batch = batch_of()
    torch.testing.assert_close(Outputs(same, batch).match, Outputs(model, batch).match)


def test_sizes_of_the_paper() -> None:
    """Sections 3.1 and 3.5: an image encoder of 85.8 M parameters, and 123.7 M in the two encoders of texts."""
    with torch.device("meta"):
        model = Albef(vocab_size=30522)
    of = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert of["patches"] + of["vision"] == pytest.approx(85.8e6, rel=1e-2)
    assert of["text"] + of["fusion"] == pytest.approx(123.7e6, rel=1e-2)
