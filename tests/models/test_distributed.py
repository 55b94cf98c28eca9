"""Two ranks equal one process, in value and gradient. Run as a script this file is one of the ranks."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tests.ranks import join, leave, run
from vlpipe.models import distributed
from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.objective import Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.itc import Itc
from vlpipe.models.objectives.itm import Itm
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.teachers import Ema


def two_steps(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """Losses and gradients of the mean over all ranks, and the queue, after two steps on this rank's rows."""
    blip = Blip.load(folder)
    ema = Ema(momentum=0.9)
    ema.bind(blip)
    itc, itm, lm = Itc(queue_size=6), Itm(all_ranks=world > 1), Lm()
    for objective in (itc, itm, lm):
        objective.bind(blip)
    out: dict[str, Any] = {}
    for step, whole in enumerate(torch.load(folder / "batches.pt", weights_only=False)):
        part = whole.map(lambda value: value.chunk(world)[rank])
        ema.follow(blip)
        outputs = Outputs(blip, part, {"ema": ema.copy})
        named = {**itc(outputs), **itm(outputs), **lm(outputs)}
        for name, value in named.items():
            out[f"{step}:{name}"] = distributed.total(mean(value))
        for name in ("itc", "itm", "lm"):
            blip.zero_grad()
            mean(named[name]).backward(retain_graph=True)
            for weight, p in blip.named_parameters():
                if p.grad is not None:
                    out[f"{step}:{name}:{weight}"] = distributed.total(p.grad)
    return out | {f"state:{n}": v for n, v in itc.state_dict().items()}


def mean(value: Term | torch.Tensor) -> torch.Tensor:
    """This rank's sum over the count of all ranks, whose sum over ranks is the mean; a diagnostic's part of its mean."""
    if not isinstance(value, Term):
        return value / distributed.world_size()
    return value.total / distributed.total(torch.as_tensor(value.count))


def one_negative_stands_out(blip: Blip, batch: Batch) -> bool:
    """Is each row's likeliest negative e^20 times as likely as the next? Then all processes draw it."""
    out = Outputs(blip, batch)
    sims, own = out.image_feat @ out.text_feat.t(), batch.same
    for direction in (sims, sims.t()):
        best = direction.masked_fill(own[:, None] == own, -9).topk(2, dim=1).values
        if (best[:, 0] - best[:, 1]).min() < 20 * blip.temp:
            return False
    return True


def test_two_ranks_are_one_process(make_blip: Any, make_batch: Any, tmp_path: Path) -> None:
    blip = make_blip()
    blip.temp.data.fill_(0.0005)
    blip.save(tmp_path)
    found = (make_batch(4, same=ids) for ids in [[1, 2, 3, 1], [3, 4, 4, 5]] * 200)
    clear = [*islice((batch for batch in found if one_negative_stands_out(blip, batch)), 2)]
    assert len(clear) == 2, "of 400 batches less than two have negatives that stand out"
    torch.save(clear, tmp_path / "batches.pt")
    run(tmp_path, 2, [__file__, tmp_path])
    one = two_steps(tmp_path, 0, 1)
    for rank in range(2):
        two = torch.load(tmp_path / f"rank{rank}of2.pt")
        assert two.keys() == one.keys()
        for name, value in one.items():
            scale = float(value.abs().max()) + 1e-6
            torch.testing.assert_close(
                two[name], value, rtol=1e-3, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_one_process_without_a_group() -> None:
    x = torch.arange(6.0).reshape(3, 2).requires_grad_()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert torch.equal(distributed.gather(x), x)
    assert not distributed.gather(x).requires_grad
    assert distributed.gather_with_grad(x) is x
    assert torch.equal(distributed.gather_padded(x), x)
    assert torch.equal(distributed.total(x), x)
    assert not distributed.total(x).requires_grad


if __name__ == "__main__":
    shared, own_rank = Path(sys.argv[1]), join()
    torch.save(two_steps(shared, own_rank, 2), shared / f"rank{own_rank}of2.pt")
    leave()
