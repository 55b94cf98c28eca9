"""Tensor parallelism: layers cut among workers that have the same rows, by torch's DTensor plans.

Of attention each worker computes some heads, of a feed-forward part some inner units: the first matrix is cut by columns,
the second by rows, and what the workers get is summed. Shoeybi et al. 2019 (Megatron-LM), https://arxiv.org/abs/1909.08053.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.decoder import DecoderLayer
from vlpipe.models.blocks.post_norm import CrossAttention, FeedForward, SelfAttention
from vlpipe.models.blocks.transformer import PreNormLayer

# linear layers cut by columns, with the number of matrices in each, and by rows
PLANS: dict[type[nn.Module], tuple[dict[str, int], tuple[str, ...]]] = {
    PreNormLayer: ({"qkv": 3, "up": 1}, ("out", "down")),
    DecoderLayer: ({"qkv": 3, "up": 1}, ("out", "down")),
    SelfAttention: ({"qkv": 3}, ("out",)),
    CrossAttention: ({"q": 1, "kv": 2}, ("out",)),
    FeedForward: ({"up": 1}, ("down",)),
}


class Beside(nn.Module):
    """A linear layer of several equal matrices, such as queries, keys and values, as layers beside each other."""

    PARTS_OF_ONE = True  # names of parameters, such as those in `groups`, mean the whole

    def __init__(self, linear: nn.Linear, num: int) -> None:
        super().__init__()
        biases = [None] * num if linear.bias is None else linear.bias.detach().chunk(num)
        for i, (weight, bias) in enumerate(zip(linear.weight.detach().chunk(num), biases, strict=True)):
            part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            part.weight = nn.Parameter(weight.clone(), linear.weight.requires_grad)
            if bias is not None:
                part.bias = nn.Parameter(bias.clone(), linear.bias.requires_grad)
            self.add_module(str(i), part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.children()], -1)


def cut_layers(net: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields (name, module) of what tensor parallelism cuts: the blocks of PLANS."""
    return ((name, module) for name, module in net.named_modules() if type(module) in PLANS)


def tensor_problem(net: nn.Module, num: int) -> str | None:
    """Returns why the layers of a net cannot be cut into `num` parts; None if they can."""
    found = list(cut_layers(net))
    if not found:
        kinds = ", ".join(cls.__name__ for cls in PLANS)
        return f"mesh: the model has no layer that `tensor` cuts: {kinds}; remove `tensor`"
    for name, module in found:
        heads = getattr(module, "num_heads", num)
        if heads % num:
            return f"mesh: {name} has {heads} heads, which {num} `tensor` workers cannot divide"
        up = getattr(module, "up", None)
        if up is not None and up.out_features % num:
            return (
                f"mesh: {name} has {up.out_features} inner units, which {num} `tensor` workers cannot divide"
            )
    return None


def cut(net: nn.Module, mesh: DeviceMesh) -> None:
    """Cuts the layers of a net in place; the rest is whole on each worker. mesh: of one dimension.

    Dropout inside of a cut layer has the same mask for the heads or units of each worker. Raises ValueError if a layer
    cannot be divided.
    """
    if problem := tensor_problem(net, mesh.size()):
        raise ValueError(problem)
    for _, module in list(cut_layers(net)):
        columns, rows = PLANS[type(module)]
        plan: dict[str, Any] = {name: RowwiseParallel() for name in rows}
        for name, num in columns.items():
            if num > 1:
                setattr(module, name, Beside(getattr(module, name), num))
            plan |= {f"{name}.{i}" if num > 1 else name: ColwiseParallel() for i in range(num)}
        parallelize_module(module, mesh, plan)
        if hasattr(module, "num_heads"):
            module.num_heads //= mesh.size()
        if isinstance(module, SelfAttention):
            module.first = partial(_first, module)  # type: ignore[method-assign]


def _first(attention: Any, x: Tensor, mask: Tensor) -> Tensor:
    """As `SelfAttention.first`, by the layers of queries, keys and values, not by parts of their matrix."""
    q, k, v = attention._qkv(x)
    out: Tensor = attention._close(x[:, :1], attend(q[:, :, :1], k, v, mask, False, attention._rate()))
    return out


def parts_of(net: nn.Module) -> dict[str, list[str]]:
    """Returns the names of the parts, in their order, of each tensor of a net's state that is cut into layers beside each
    other, by the name that it has without tensor parallelism.
    """
    return {
        f"{name}.{kind}": [f"{name}.{i}.{kind}" for i, _ in enumerate(module.children())]
        for name, module in net.named_modules()
        if isinstance(module, Beside)
        for kind, _ in next(module.children()).named_parameters()
    }


def joined(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state of `net` with whole tensors under the names that it has without tensor parallelism."""
    parts = parts_of(net)
    whole_of = {part: name for name, own in parts.items() for part in own}
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        whole = whole_of.get(name)
        if whole is None:
            found[name] = value
        elif name == parts[whole][0]:
            found[whole] = torch.cat([state[part] for part in parts[whole]])
    return found
