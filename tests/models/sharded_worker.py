"""One of two ranks: each system's loss and gradients under FSDP2, and under torch.compile, against the plain module.

Run as a script by `tests.ranks`: FOLDER [SYSTEM ...]. Prints a line per system and writes what differs to FOLDER/rank.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.models.small_system import SmallSystem, small_systems
from tests.ranks import join, leave
from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.objective import Term
from vlpipe.models.parallel.sharded import Sharded


def loss_of(net: Any, batch: Batch) -> torch.Tensor:
    torch.manual_seed(3)  # negatives are drawn
    values = net(batch)
    return sum(
        v.total / v.count for n, v in values.items() if isinstance(v, Term) and not n.endswith("accuracy")
    )


def gradients(net: nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """The mean over ranks of each gradient."""
    found = {}
    for name, p in net.named_parameters():
        if p.grad is not None:
            grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad.clone()
            if not isinstance(p.grad, DTensor) and kind != "fsdp":
                dist.all_reduce(grad)
                grad /= dist.get_world_size()
            found[name.replace("_orig_mod.", "")] = grad
    return found


def different(name: str, system: SmallSystem, rank: int) -> list[str]:
    plain, sharded, compiled = system.net(), system.net(), system.net()
    batch, mesh = system.batch(rank), init_device_mesh("cpu", (2,))
    sharded.leads_teachers = False
    divided = Sharded(sharded, mesh)
    nets = {"plain": plain, "fsdp": sharded, "compile": torch.compile(compiled, backend="aot_eager")}
    losses, grads = {}, {}
    for kind, net in nets.items():
        if kind == "fsdp":
            net.update_teachers()
        loss = loss_of(net, batch)
        loss.backward()
        if kind == "fsdp":
            divided.finish()
        losses[kind], grads[kind] = loss.detach(), gradients(net, kind)
    gathered = {
        cls for module in sharded.modules() if isinstance(module, FSDPModule) for cls in type(module).__mro__
    }
    found = [
        f"{name} does not gather {unit.__name__} on its own" for unit in system.units if unit not in gathered
    ]
    for kind in ("fsdp", "compile"):
        if not torch.allclose(losses[kind], losses["plain"], rtol=1e-5, atol=1e-6):
            found.append(f"{name} {kind} loss {losses[kind]} {losses['plain']}")
        if set(grads[kind]) != set(grads["plain"]):
            found.append(f"{name} {kind} has gradients of {set(grads[kind]) ^ set(grads['plain'])}")
        found += [
            f"{name} {kind} {n}"
            for n in set(grads[kind]) & set(grads["plain"])
            if not torch.allclose(grads[kind][n], grads["plain"][n], rtol=1e-4, atol=1e-6)
        ]
    return found


def main(folder: Path, names: list[str]) -> None:
    rank, found = join(), []
    systems = small_systems()
    for name in names or systems:
        found += different(name, systems[name], rank)
        print(name, flush=True)
    (folder / f"{rank}.txt").write_text("\n".join(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
