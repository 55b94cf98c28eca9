"""What a worker holds of weights, gradients and moments, summed over the storages of tensors. As a script it is one rank."""

from __future__ import annotations

import gc
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from tests.ranks import join, leave, run
from vlpipe.models.parallel.mesh import bytes_per_parameter
from vlpipe.models.parallel.sharded import Sharded

WIDTH, LAYERS, RANKS = 128, 4, 4
NUM = LAYERS * (WIDTH * WIDTH + WIDTH)  # parameters; all divide by the number of ranks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def held() -> int:
    """Returns the bytes of all storages that tensors in this process refer to."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), Tensor)]
    tensors += [t._local_tensor for t in tensors if hasattr(t, "_local_tensor")]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    found = {}
    for t in tensors:
        if type(t) in (Tensor, nn.Parameter):
            found[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
    return sum(found.values())


def measured(stage: int, half: bool) -> dict[str, float]:
    """Bytes per parameter in the second step: with the gradient of a first micro-batch of two; of both; as the optimiser
    gets it; after the step."""
    torch.manual_seed(0)
    before = held()
    net = Net()
    sharded = None
    if stage:
        mesh = init_device_mesh("cpu", (RANKS,))
        sharded = Sharded(net, mesh, stage=stage, dtype=torch.bfloat16 if half else None)
    optimiser = torch.optim.AdamW(net.parameters(), fused=True)
    x = torch.randn(2, WIDTH, dtype=torch.bfloat16 if half else torch.float32)
    before += x.nbytes
    found: dict[str, float] = {}
    for _ in range(2):
        for micro in range(2):
            with sharded.no_sync() if sharded is not None and micro == 0 else nullcontext():
                (sharded or net)(x).float().square().mean().backward()
            found[f"micro-batch {micro}"] = (held() - before) / NUM
        if sharded is not None:
            sharded.finish()
        found["optimiser"] = (held() - before) / NUM
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        found["step"] = (held() - before) / NUM
    return found


def main(folder: Path) -> None:
    rank = join()
    gc.freeze()  # what is imported is not looked through again
    found: dict[Any, Any] = {
        (stage, half): measured(stage, half) for stage in (1, 2, 3) for half in (True, False)
    }
    torch.save(found, folder / f"{rank}.pt")
    leave()


@pytest.mark.slow
def test_bytes_are_those_of_the_paper(tmp_path: Path) -> None:
    """Within 0.05 bytes per parameter (steps of AdamW, biases' padding)."""
    run(tmp_path, RANKS, [__file__, tmp_path])
    assert measured(0, False)["micro-batch 1"] == pytest.approx(16, abs=0.05)
    papers = {1: 4 + 12 / RANKS, 2: 2 + 14 / RANKS, 3: 16 / RANKS}
    for rank in range(RANKS):
        for (stage, half), found in torch.load(tmp_path / f"{rank}.pt").items():
            most, least = bytes_per_parameter(stage, RANKS, half=half)
            assert found["micro-batch 0"] == pytest.approx(most, abs=0.05), (stage, half)
            assert found["micro-batch 1"] <= most + 0.05, (stage, half)
            assert found["optimiser"] == pytest.approx(16 / RANKS, abs=0.05), (stage, half)
            assert found["step"] == pytest.approx(least, abs=0.05), (stage, half)
            if half:
                assert most == papers[stage]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
