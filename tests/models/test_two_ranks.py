"""SigLIP, CoCa, ALBEF, BLIP-2, VLMo, HowTo100M, MIL-NCE, UniVL: two ranks equal one process, in value and gradient. Run as a
script it is one rank."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

from tests.models.narrated import narrated
from tests.ranks import join, leave, run
from vlpipe.models import distributed
from vlpipe.models.interface.batch import IGNORE, Batch, Step, Stream
from vlpipe.models.interface.objective import Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.infonce import InfoNce
from vlpipe.models.objectives.itc import Itc
from vlpipe.models.objectives.itm import Itm
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.objectives.masked_lm import DistilledMaskedLm, MaskedLm
from vlpipe.models.objectives.pairs.expert_itc import ExpertItc
from vlpipe.models.objectives.pairs.query_itc import QueryItc
from vlpipe.models.objectives.sigmoid import Sigmoid
from vlpipe.models.objectives.video.joint_mil import JointMil
from vlpipe.models.objectives.video.max_margin import MaxMargin
from vlpipe.models.objectives.video.mil_nce import MilNce
from vlpipe.models.systems.image_text.albef import Albef
from vlpipe.models.systems.image_text.blip_2 import Blip2
from vlpipe.models.systems.image_text.coca import Coca
from vlpipe.models.systems.image_text.siglip import Siglip
from vlpipe.models.systems.image_text.vlmo import Vlmo
from vlpipe.models.systems.video.gated_embeddings import GatedEmbeddings
from vlpipe.models.systems.video.mil_nce import MilNceModel
from vlpipe.models.teachers import Ema

WORDS, ROWS = 40, 6
SIZES: dict[str, Any] = {"vocab_size": WORDS, "image_size": 16, "patch_size": 8, "max_text_length": 12}
TOWERS: dict[str, Any] = {
    "vision_width": 16,
    "vision_layers": 1,
    "vision_heads": 2,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
}
DECODER: dict[str, Any] = {"width": 16, "heads": 2, "vision_layers": 1, "queries": 3}
FORMER: dict[str, Any] = {"width": 16, "heads": 2, "layers": 2, "queries": 3, "embed_dim": 8, "dropout": 0.0}
FORMER |= {"vision_width": 16, "vision_layers": 1, "vision_heads": 2, "vision_mlp": 32}
MOME: dict[str, Any] = {
    "width": 16,
    "layers": 2,
    "vl_layers": 1,
    "heads": 2,
    "position": "relative",
    "num_codes": 3,
    "drop_path": 0.0,
    "dropout": 0.0,
}
ITC: dict[str, Any] = {"queue_size": 8, "alpha_ramp_epochs": 0, "share": False, "kl": True}
SYSTEMS: dict[str, tuple[Callable[[], Any], list[Callable[[], Any]]]] = {
    "siglip": (
        lambda: Siglip(pad=0, **SIZES, **TOWERS),
        [Sigmoid],
    ),
    "siglip, pictures shared": (
        lambda: Siglip(pad=0, **SIZES, **TOWERS),
        [lambda: Sigmoid(share=True)],
    ),
    "coca": (
        lambda: Coca(start=1, end=2, unimodal_layers=1, multimodal_layers=1, **SIZES, **DECODER),
        [InfoNce, Lm],
    ),
    "blip-2": (
        lambda: Blip2(pad=0, start=1, end=2, dec=3, **SIZES, **FORMER),
        [QueryItc, Lm],
    ),
    "blip-2, pictures shared": (
        lambda: Blip2(pad=0, start=1, end=2, dec=3, **SIZES, **FORMER),
        [lambda: QueryItc(share=True)],
    ),
    "albef": (
        lambda: Albef(fusion_layers=1, embed_dim=8, dropout=0.0, **SIZES, **TOWERS),
        [
            lambda: Itc(**ITC),
            lambda: Itm(all_ranks=distributed.world_size() > 1),
            lambda: DistilledMaskedLm(alpha_ramp_epochs=0),
        ],
    ),
    "vlmo": (
        lambda: Vlmo(**SIZES, **MOME),
        [ExpertItc, lambda: Itm(all_ranks=True), MaskedLm],
    ),
    "max margin": (
        lambda: GatedEmbeddings(vocab_size=WORDS, feat_dims=[6, 4], word_dim=8, embed_dim=12),
        [lambda: MaxMargin(margin=0.5)],
    ),
    "max margin, as released": (
        lambda: GatedEmbeddings(vocab_size=WORDS, feat_dims=[6, 4], word_dim=8, embed_dim=12),
        [lambda: MaxMargin(margin=0.5, as_released=True)],
    ),
    "mil-nce": (
        lambda: MilNceModel(vocab_size=WORDS, feat_dim=10, embed_dim=6, word_dim=8, text_width=12),
        [MilNce],
    ),
    "mil-nce, as released": (
        lambda: MilNceModel(vocab_size=WORDS, feat_dim=10, embed_dim=6, word_dim=8, text_width=12),
        [lambda: MilNce(as_released=True)],
    ),
}
SYSTEMS["joint"] = (SYSTEMS["mil-nce"][0], [JointMil])
SYSTEMS["joint, as released"] = (SYSTEMS["mil-nce"][0], [lambda: JointMil(as_released=True)])
# texts per clip
NARRATED = {
    "max margin": 1,
    "max margin, as released": 1,
    "mil-nce": 3,
    "mil-nce, as released": 3,
    "joint": 1,
    "joint, as released": 1,
}
DRAWS = ("albef", "vlmo")  # negatives of matching


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    model = SYSTEMS[name][0]()
    for p in model.parameters():
        if p.ndim > 1:
            p.data.add_(0.2 * torch.randn_like(p))
    if name in DRAWS:
        model.temp.data.fill_(0.0005)  # the likeliest negative is the one that is drawn
    return model.eval()


def batch_of(seed: int) -> Batch:
    """Pictures 0 and 3 are the same; texts of 3 to 10 tokens, so that ranks differ in tokens."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([3, 9, 4, 10, 7, 5])
    mask = torch.arange(10)[None] < lengths[:, None]
    ids = torch.randint(5, WORDS, (ROWS, 10), generator=draw).masked_fill(~mask, 0)
    hidden = mask & (torch.arange(10) % 3 == 1)
    masked = Stream(ids.masked_fill(hidden, 4), mask, target={"ids": ids.masked_fill(~hidden, IGNORE)})
    return Batch(
        streams={"image": Stream(torch.randn(ROWS, 3, 16, 16, generator=draw)), "text": Stream(ids, mask)},
        same=torch.tensor([0, 1, 2, 0, 4, 5]),
        views={"mlm": {"text": masked}},
        step=Step(progress=1.0),
    )


def batches(name: str) -> list[Batch]:
    """Two; where negatives are drawn, they stand out."""
    if name in NARRATED:
        return [narrated(seed, ROWS, texts=NARRATED[name], words=WORDS) for seed in (0, 1)]
    if name not in DRAWS:
        return [batch_of(0), batch_of(1)]
    model = model_of(name)
    found = [batch for batch in map(batch_of, range(400)) if stands_out(model, batch)]
    assert len(found) >= 2
    return found[:2]


def stands_out(model: Any, batch: Batch) -> bool:
    out = Outputs(model, batch, grad=False)
    sims, own = out.image_feat @ out.text_feat.t(), batch.same
    best = [d.masked_fill(own[:, None] == own, -9).topk(2, dim=1).values for d in (sims, sims.t())]
    return all(bool((b[:, 0] - b[:, 1]).min() > 20 * model.temp) for b in best)


def two_steps(name: str, rank: int, world: int) -> dict[str, Tensor]:
    """Losses of two steps on this rank's rows, gradients of their means over all ranks, and the queue."""
    model, ema = model_of(name), Ema(momentum=0.9)
    ema.bind(model)
    objectives = [make() for make in SYSTEMS[name][1]]
    found: dict[str, Tensor] = {}
    for objective in objectives:
        objective.bind(model)
    for step, whole in enumerate(batches(name)):
        part = whole.rows(slice(rank * ROWS // world, (rank + 1) * ROWS // world))
        ema.follow(model)
        out = Outputs(model, part, {"ema": ema.copy})
        for objective in objectives:
            seen = out.view("mlm") if isinstance(objective, MaskedLm) else out
            for loss, term in objective(seen).items():
                if loss not in objective.LOSSES:
                    continue
                assert isinstance(term, Term)
                mean = term.total / distributed.total(torch.as_tensor(float(term.count)))
                found[f"{step}:{loss}"] = distributed.total(mean)
                model.zero_grad()
                mean.backward(retain_graph=True)
                for n, p in model.named_parameters():
                    if p.grad is not None:
                        found[f"{step}:{loss}:{n}"] = distributed.total(p.grad)
        found |= {f"state:{n}": v.clone() for o in objectives for n, v in o.state_dict().items()}
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim > 1:
                    p.mul_(0.99)
    return found


def largest(found: dict[str, Tensor], key: str) -> float:
    """The largest value of the same step and loss: rounding is relative to that."""
    step_and_loss = key.split(":")[:2]
    return max(float(v.abs().max()) for k, v in found.items() if k.split(":")[:2] == step_and_loss)


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    """Values and gradients to 1e-4 of themselves, or 1e-6 of the largest of their loss."""
    run(tmp_path, 2, [__file__, tmp_path])
    wanted = {name: two_steps(name, 0, 1) for name in SYSTEMS}
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, one in wanted.items():
        losses = {key.split(":")[1] for key in one if not key.startswith("state")}
        assert losses == {loss for make in SYSTEMS[name][1] for loss in make().LOSSES}
        for two in found:
            assert two[name].keys() == one.keys()
            for key, value in one.items():
                close: dict[str, float] = {"rtol": 1e-4, "atol": 1e-6 * largest(one, key)}
                torch.testing.assert_close(
                    two[name][key], value, **close, msg=lambda m, k=key, n=name: f"{n} {k}: {m}"
                )


if __name__ == "__main__":
    folder, own_rank = Path(sys.argv[1]), join()
    torch.save({name: two_steps(name, own_rank, 2) for name in SYSTEMS}, folder / f"{own_rank}.pt")
    leave()
