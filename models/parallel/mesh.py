"""How the workers of a training divide data and model, as YAML states it. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

# what does not go with a pipeline yet, and why
BESIDE_PIPELINE = {
    "shard": "workers gather each layer once per micro-batch, which a pipeline has many of",
    "tensor": "workers add up what they compute while the pipeline exchanges between others",
    "expert": "workers wait for each other's tokens while they are at other micro-batches",
}


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A grid of pipeline x data x shard x tensor workers; neighbours in the last dimension have neighbouring ranks.

    data: replicas of the model, each with its own rows; None: as many as the other dimensions leave. shard: workers, each
    with rows of its own too, among which weights, gradients and optimiser state are divided (ZeRO, Rajbhandari et al. 2020,
    https://arxiv.org/abs/1910.02054). zero: what is divided: 1 optimiser state and master weights, 2 gradients too, 3 the
    weights of the forward pass too; default 3. tensor: workers with the same rows, each of which computes some heads and
    inner units of each layer. expert: how many of the data x shard workers compute the experts of a mixture together, each
    an equal part, which tokens reach and leave by all-to-all (GShard, Lepikhin et al. 2020,
    https://arxiv.org/abs/2006.16668). pipeline: workers with the same rows, each of which has some of the layers; the
    micro-batches of `accumulate` go through them one after the other. half: the weights of the forward pass and their
    gradients are exchanged and kept in the type of `precision` instead of float32.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    data: int | None = None
    shard: int = 1
    zero: Literal[1, 2, 3] | None = None
    tensor: int = 1
    expert: int = 1
    pipeline: int = 1
    half: bool = False

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are divided; if not, DistributedDataParallel or a pipeline does all that is needed."""
        return self.shard > 1 or self.tensor > 1

    @property
    def stage(self) -> int:
        """The stage of ZeRO: 0 without shards."""
        return (self.zero or 3) if self.is_sharded else 0

    @property
    def bytes_per_parameter(self) -> float:
        """The most that a worker holds, see the function `bytes_per_parameter`."""
        return bytes_per_parameter(self.stage, self.shard, half=self.half)[0]

    def replicas(self, num_workers: int) -> int:
        """Returns `data`, or what the other dimensions leave of the workers."""
        others = self.shard * self.tensor * self.pipeline
        return self.data if self.data is not None else max(1, num_workers // max(1, others))

    def problems(self, num_workers: int, called: str = "num_workers") -> list[str]:
        """Returns what is wrong with the mesh for this number of workers, one message each. called: that number's name."""
        sizes = {"data": self.replicas(num_workers), "shard": self.shard, "tensor": self.tensor}
        sizes |= {"pipeline": self.pipeline} if self.pipeline != 1 else {}
        low = [f"{name} {size}" for name, size in {**sizes, "expert": self.expert}.items() if size < 1]
        if low:
            return [f"mesh: sizes must be at least 1, got {', '.join(low)}"]
        found = []
        if math.prod(sizes.values()) != num_workers:
            shape = " x ".join(f"{name} {size}" for name, size in sizes.items())
            found.append(f"mesh: {shape} must be {called} = {num_workers}")
        rows = sizes["data"] * sizes["shard"]
        if rows % self.expert:
            found.append(
                f"mesh: expert: {self.expert} must divide data x shard = {rows}, the workers with rows of their own"
            )
        if self.expert > 1 and self.tensor > 1:
            found.append("mesh: expert does not go with tensor; set one of the two")
        found += [
            f"mesh: pipeline does not go with {name}, whose {why}; set one of the two"
            for name, why in BESIDE_PIPELINE.items()
            if self.pipeline > 1 and getattr(self, name) > 1
        ]
        if self.shard == 1 and self.zero is not None:
            found.append(
                f"mesh: zero: {self.zero} divides among `shard` workers, of which there is 1; set shard"
            )
        if self.shard == 1 and self.half:
            found.append(
                "mesh: half: true is for what is divided among `shard` workers, of which there is 1; set shard"
            )
        return found


def bytes_per_parameter(stage: int, shard: int, *, half: bool) -> tuple[float, float]:
    """Returns the bytes of weights, gradients and AdamW's moments that a worker holds per trained parameter: (most, least).

    most: between the forward and the backward pass of a step, or of its last micro-batch; least: between steps. half: with
    weights and gradients of the forward pass in 2 bytes and float32 master weights; these are the sums of the paper (16,
    4 + 12/N, 2 + 14/N, 16/N). Stage 3 has no weights of 2 bytes between forward passes, and gradients of 4 instead; in
    stages 1 and 2 gradients get 4 bytes for the optimiser step, when the gathered weights are gone: 16/N. Activations,
    buffers of exchanges and scalars are apart.
    """
    whole = 2 if half else 4
    if stage == 0:
        return 16.0, 12.0
    kept = 12 / shard  # master weights and two moments
    most = {1: 2 * whole + kept, 2: whole + kept + whole / shard, 3: kept + 4 / shard}
    return most[stage], kept
