"""Adversarial training against a second implementation, written from algorithm 1 of VILLA: perturbations and gradients.

Gan et al. 2020, https://arxiv.org/abs/2006.06195. Tolerances: gradients 1e-5 of their largest value.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.parity import noisy
from tests.models.second_regions import rows
from tests.models.small_system import SmallSystem, small_systems
from vlpipe.models.adversarial.config import Adversarial
from vlpipe.models.adversarial.losses import binary_kl, symmetric_kl
from vlpipe.models.adversarial.perturb import Perturbations
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.interface.batch import IGNORE, Batch, Step, Stream
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.downstream.soft_answer import SoftAnswer
from vlpipe.models.objectives.infonce import InfoNce
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region_mse import RegionMse
from vlpipe.stages.train.build import Net
from vlpipe.stages.train.gradients import accumulate
from vlpipe.stages.train.recipe import Recipe
from vlpipe.stages.train.run import Run

WORDS, WIDTH = 37, 8
SYSTEMS = ("lxmert", "uniter", "visualbert", "vilbert", "unicoder_vl")


class Product(Model):
    """Each word's embedding with its position, times the mean of the projected regions; small enough to write twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words = TextEmbed(WORDS, 12, WIDTH, norm_eps=None)
        self.feat, self.head, self.yes = nn.Linear(10, WIDTH), nn.Linear(WIDTH, WORDS), nn.Linear(WIDTH, 2)

    def word_hidden(self, out: Outputs) -> Tensor:
        image, words = out.stream("regions"), self.words(out.stream("text").data)
        assert image.mask is not None
        seen = image.mask[..., None]
        mean = (self.feat(image.data).tanh() * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
        return words.tanh() * mean

    def predict_words(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def match(self, out: Outputs) -> Tensor:
        text = out.stream("text")
        assert text.mask is not None
        return self.yes((out.word_hidden * text.mask[..., None]).sum(1))


def batch_of(step: int = 0) -> Batch:
    text, regions = rows()
    return Batch({"text": text, "regions": regions}, same=torch.arange(5), step=Step(number=step))


def gradients(
    net: Net, spec: Adversarial | None, *batches: Batch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values of a step, and the gradient of each parameter."""
    recipe = Recipe(objectives=["any"], model={}, batch_size=1, steps=1, adversarial=spec)
    run = Run(recipe, torch.device("cpu"), net, None, 1)
    values = accumulate(run, batches)
    return values, {name: p.grad.clone() for name, p in net.model.named_parameters() if p.grad is not None}


def second(model: Product, spec: Adversarial, weight: float) -> dict[str, Tensor]:
    """Algorithm 1: K times the gradient of L(x) + sum of L(x + d) + kl KL(...), each 1 / K; d moves after each time.

    L: masked words + `weight` x matching, means over masked words and over rows.
    """
    p = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    batch = batch_of()
    text, regions = batch.stream("text"), batch.stream("regions")
    assert text.mask is not None
    assert regions.mask is not None

    def logits(of_words: Tensor, of_regions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the masked words, (M, V), and of matching, (B, 2)."""
        words = (
            p["words.words.weight"][text.data] + of_words + p["words.positions.weight"][: text.data.shape[1]]
        )
        parts = ((regions.data + of_regions) @ p["feat.weight"].t() + p["feat.bias"]).tanh()
        image = torch.stack([one[seen].mean(0) for one, seen in zip(parts, regions.mask, strict=True)])
        hidden = words.tanh() * image[:, None]
        pooled = torch.stack([one[seen].sum(0) for one, seen in zip(hidden, text.mask, strict=True)])
        at = text.target["ids"] != IGNORE
        masked = hidden[at] @ p["head.weight"].t() + p["head.bias"]
        return masked, pooled @ p["yes.weight"].t() + p["yes.bias"]

    def loss(found: tuple[Tensor, Tensor]) -> Tensor:
        true = text.target["ids"][text.target["ids"] != IGNORE]
        return F.cross_entropy(found[0], true) + weight * F.cross_entropy(found[1], text.target["match"])

    def divergence(clean: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
        total = torch.zeros(())
        for factor, a, b in zip((1.0, weight), clean, other, strict=True):
            q, r = a.softmax(-1), b.softmax(-1)
            both = (q * (q / r).log()).sum(-1) + (r * (r / q).log()).sum(-1)
            total = total + factor * both.mean()
        return total

    none = torch.zeros(5, 8, WIDTH), torch.zeros(5, 4, 10)
    deltas = {"text": none[0].clone(), "regions": none[1].clone()}
    sums = {name: torch.zeros_like(value) for name, value in p.items()}
    for _ in range(spec.steps):
        total, moves = loss(logits(*none)), {}
        for name in spec.streams:
            delta = deltas[name].clone().requires_grad_()
            found = logits(delta, none[1]) if name == "text" else logits(none[0], delta)
            adversarial = loss(found) + spec.kl * divergence(logits(*none), found)
            total = total + adversarial
            moves[name] = torch.autograd.grad(adversarial, delta, retain_graph=True)[0]
        for name, grad in zip(p, torch.autograd.grad(total, list(p.values())), strict=True):
            sums[name] += grad / spec.steps
        for name, grad in moves.items():
            for row in range(5):
                deltas[name][row] += spec.lr * grad[row] / grad[row].norm()
                if spec.radius is not None and deltas[name][row].norm() > spec.radius:
                    deltas[name][row] *= spec.radius / deltas[name][row].norm()
    return sums


@pytest.mark.parametrize("radius", [None, 0.7])
@pytest.mark.parametrize("streams", [["text"], ["regions"], ["text", "regions"]])
def test_the_gradient_is_that_of_algorithm_1(streams: list[str], radius: float | None) -> None:
    torch.manual_seed(0)
    model = noisy(Product(), but="nothing")
    spec = Adversarial(streams=streams, steps=3, lr=0.5, kl=1.5, radius=radius)
    wanted = second(model, spec, 0.5)
    net = Net(model, [(1.0, "", MaskedLm()), (0.5, "", Match())], adversarial=spec).train()
    _, found = gradients(net, spec, batch_of())
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert torch.allclose(found[name], grad, rtol=0, atol=1e-5 * max(1, float(grad.abs().max()))), name


def small(name: str, spec: Adversarial | None) -> tuple[SmallSystem, Net]:
    system = small_systems()[name]
    torch.manual_seed(0)
    objectives = [(1.0, "", copy.deepcopy(o)) for o in system.objectives]
    return system, Net(noisy(system.make(), but="nothing"), objectives, adversarial=spec).train()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SYSTEMS)
def test_perturbations_of_no_size_repeat_the_gradient(name: str) -> None:
    """Any system of words and regions: with perturbations near zero each of three passes is the plain one, three times."""
    spec = Adversarial(steps=2, lr=1e-12)
    system, plain = small(name, None)
    _, wanted = gradients(plain, None, system.batch(0))
    _, net = small(name, spec)
    values, found = gradients(net, spec, system.batch(0))
    for key, grad in wanted.items():
        scale = max(1e-3, float(grad.abs().max()))
        assert torch.allclose(found[key], 3 * grad, rtol=0, atol=1e-4 * scale), key
    for loss in plain.losses:
        for stream in ("text", "regions"):
            assert float(values[f"{loss}@{stream}"]) == pytest.approx(float(values[loss]), rel=1e-5)
            assert float(values.get(f"{loss}_kl@{stream}", torch.zeros(()))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", SYSTEMS)
def test_ascent_makes_losses_larger_than_random_directions_do(name: str) -> None:
    spec = Adversarial(steps=3, lr=0.3, radius=0.5)
    system, net = small(name, spec)
    perturbations = Perturbations(net.model, spec)
    batch, losses = system.batch(0), []
    for ascent in range(3):
        values: dict[str, Any] = dict(net(batch, perturbations=perturbations))
        perturbed = [v.total / v.count for key, v in values.items() if "@" in key and "_kl@" not in key]
        losses.append(float(sum(one.detach() for one in perturbed)))
        sum(perturbed).backward()  # type: ignore[union-attr]
        if ascent < 2:
            perturbations.ascend()
    assert losses[0] < losses[1] < losses[2]
    with torch.no_grad():
        drawn = []
        for seed in range(5):
            torch.manual_seed(seed)
            for delta in perturbations.deltas:
                noise = torch.randn_like(delta)
                delta.copy_(0.5 * noise / noise.flatten(1).norm(dim=1)[:, None, None])
            values = dict(net(batch, perturbations=perturbations))
            drawn.append(
                float(sum(v.total / v.count for k, v in values.items() if "@" in k and "_kl@" not in k))
            )
    assert losses[2] > max(drawn)


def test_micro_batches_are_one_batch() -> None:
    """Perturbations are of each sample alone, so two micro-batches give the gradient of one batch."""
    spec = Adversarial(steps=3, lr=0.3)
    system, net = small("uniter", spec)
    whole = system.batch(0)
    _, wanted = gradients(net, spec, whole)
    _, net = small("uniter", spec)
    _, found = gradients(net, spec, whole.rows(slice(0, 1)), whole.rows(slice(1, 4)))
    for name, grad in wanted.items():
        assert torch.allclose(found[name], grad, rtol=0, atol=1e-5 * max(1, float(grad.abs().max()))), name


def test_passes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`passes` is the number of forward passes through the model, each with its backward pass, of one step."""
    spec = Adversarial(steps=3)
    turns = Adversarial(steps=3, alternate=True)
    forward, passed = Product.word_hidden, []
    monkeypatch.setattr(Product, "word_hidden", lambda self, out: passed.append(1) or forward(self, out))  # type: ignore[func-returns-value]
    for one, wanted in ((None, 1), (spec, 9), (turns, 6)):
        passed.clear()
        gradients(Net(Product(), [(1.0, "", MaskedLm())], adversarial=one).train(), one, batch_of())
        assert len(passed) == wanted == (1 if one is None else one.passes)
    assert [turns.streams_of(step) for step in range(3)] == [["text"], ["regions"], ["text"]]


def test_a_random_start_has_the_papers_size_and_no_padding() -> None:
    spec = Adversarial(streams=["regions"], start=0.6)
    perturbations = Perturbations(Product(), spec)
    with perturbations.added(batch_of(), "regions") as changed:
        moved = changed.stream("regions").data - batch_of().stream("regions").data
    mask = batch_of().stream("regions").mask
    assert mask is not None
    assert not moved[~mask].any()
    bound = 0.6 / (mask.sum(1) * 10).sqrt()
    for row in range(5):
        assert 0.8 * bound[row] < moved[row].abs().max() <= bound[row] + 1e-6


def test_both_directions_of_the_divergence_by_hand() -> None:
    """p = (1/4, 3/4), q = (1/2, 1/2): sum of (p - q) log(p / q) = 1/4 log 2 + 1/4 log 1.5."""
    p, q = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    wanted = 0.25 * torch.tensor(2.0).log() + 0.25 * torch.tensor(1.5).log()
    assert float(symmetric_kl(p, q)) == pytest.approx(float(wanted))
    assert float(symmetric_kl(q, p)) == pytest.approx(float(wanted))


def test_the_divergence_of_answers_that_are_right_or_wrong_each() -> None:
    """The sum over answers of the divergence of two classes, yes and no."""
    a, b = torch.tensor([[0.3, -2.0, 1.0]]), torch.tensor([[-0.5, 0.4, 1.0]])
    wanted = [
        symmetric_kl(torch.stack([x, torch.zeros(())])[None], torch.stack([y, torch.zeros(())])[None])
        for x, y in zip(a[0], b[0], strict=True)
    ]
    torch.testing.assert_close(binary_kl(a, b), sum(wanted, torch.zeros(1)))


class Asked(Product):
    """Answers by its head, each word an answer."""

    def answer(self, out: Outputs) -> Tensor:
        return self.head(out.word_hidden.mean(1))


def test_soft_answers_have_a_divergence_of_each_answer() -> None:
    torch.manual_seed(0)
    batch, model = batch_of(), Asked()
    batch = replace(batch, streams={**batch.streams, "answer": Stream(torch.rand(5, WORDS))})
    spec = Adversarial(streams=["regions"], start=1.0)
    net = Net(model, [(1.0, "", SoftAnswer())], adversarial=spec)
    perturbations = Perturbations(model, spec)
    values = net(batch, perturbations=perturbations)
    term = values["answer_kl@regions"]
    with perturbations.added(batch, "regions") as changed:
        other = Outputs(model, changed).answer
    wanted = binary_kl(Outputs(model, batch).answer, other).mean()
    assert float(wanted.detach()) > 0
    torch.testing.assert_close(term.total / term.count, wanted)  # type: ignore[union-attr]


def test_a_loss_without_classes_has_no_divergence() -> None:
    _, net = small("uniter", Adversarial())
    assert isinstance(net.objectives[2], RegionMse)
    values = net(small_systems()["uniter"].batch(0), perturbations=Perturbations(net.model, Adversarial()))
    assert "region_mse@text" in values
    assert "region_mse_kl@text" not in values
    assert {"mlm_kl@text", "match_kl@regions"} <= values.keys()


def test_what_cannot_be_perturbed_is_named() -> None:
    with pytest.raises(ValueError, match="adversarial: the loss of InfoNce compares samples"):
        Net(small_systems()["clip"].make(), [(1.0, "", InfoNce())], adversarial=Adversarial())  # type: ignore[arg-type]
    found = Perturbations(Product(), Adversarial())
    with (
        pytest.raises(ValueError, match="this batch has no stream 'image'; it has text, regions"),
        found.added(batch_of(), "image"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="no word embedding of Product reads the ids of stream 'text'"),
        found.added(batch_of(), "text"),
    ):
        pass
    wrong = [text for bad, text in Adversarial(steps=0, lr=0.0, kl=-1.0, streams=[]).problems() if bad]
    assert len(wrong) == 4
