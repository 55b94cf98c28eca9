"""Two ranks equal one process, in value and gradient. Run as a script this file is one of the ranks."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vlpipe.models import distributed
from vlpipe.models.blip import Blip
from vlpipe.models.features import Features
from vlpipe.models.objectives.itc import Itc
from vlpipe.models.objectives.itm import Itm
from vlpipe.models.objectives.lm import Lm


def two_steps(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """Losses and gradients averaged over ranks, and the queue, after two steps on this rank's rows."""
    blip = Blip.load(folder)
    itc, itm, lm = Itc(queue_size=6, momentum=0.9), Itm(all_ranks=world > 1), Lm()
    itc.bind(blip)
    out: dict[str, Any] = {}
    for step, whole in enumerate(torch.load(folder / "batches.pt")):
        part = {n: v.chunk(world)[rank] if isinstance(v, torch.Tensor) else v for n, v in whole.items()}
        features = Features(blip, part)
        named = itc(blip, part, features) | itm(blip, part, features) | lm(blip, part, features)
        for name, value in named.items():
            out[f"{step}:{name}"] = averaged(value.detach().clone(), world)
        for name in ("itc", "itm", "lm"):
            blip.zero_grad()
            named[name].backward(retain_graph=True)
            for weight, p in blip.named_parameters():
                if p.grad is not None:
                    out[f"{step}:{name}:{weight}"] = averaged(p.grad, world)
    return out | {f"state:{n}": v for n, v in itc.state_dict().items()}


def averaged(x: torch.Tensor, world: int) -> torch.Tensor:
    if world > 1:
        dist.all_reduce(x)
    return x / world


def one_negative_stands_out(blip: Blip, batch: dict[str, Any]) -> bool:
    """Is each row's likeliest negative e^20 times as likely as the next? Then all processes draw it."""
    sims = (
        blip.embed_image(batch["pixels"]) @ blip.embed_text(batch["input_ids"], batch["attention_mask"]).t()
    )
    own = batch["image_id"]
    for direction in (sims, sims.t()):
        best = direction.masked_fill(own[:, None] == own, -9).topk(2, dim=1).values
        if (best[:, 0] - best[:, 1]).min() < 20 * blip.temp:
            return False
    return True


def test_two_ranks_are_one_process(make_blip: Any, make_batch: Any, tmp_path: Path) -> None:
    blip = make_blip()
    blip.temp.data.fill_(0.002)
    blip.save(tmp_path)
    found = (make_batch(4, image_id=ids) for ids in itertools.cycle([[1, 2, 3, 1], [3, 4, 4, 5]]))
    clear = (batch for batch in found if one_negative_stands_out(blip, batch))
    torch.save([next(clear), next(clear)], tmp_path / "batches.pt")
    ranks = [subprocess.Popen([sys.executable, __file__, str(tmp_path), str(r)]) for r in range(2)]
    one = two_steps(tmp_path, 0, 1)
    assert [r.wait(timeout=120) for r in ranks] == [0, 0]
    for rank in range(2):
        two = torch.load(tmp_path / f"rank{rank}.pt")
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
    assert distributed.mean(torch.tensor(6.0), torch.tensor(3)).item() == 2
    assert distributed.mean(torch.tensor(0.0), torch.tensor(0)).item() == 0


if __name__ == "__main__":
    shared, own_rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{shared}/meet", rank=own_rank, world_size=2)
    torch.save(two_steps(shared, own_rank, 2), shared / f"rank{own_rank}.pt")
    dist.destroy_process_group()
