"""The training state of a net that is divided among workers, in checkpoints that any other mesh reads.

Names and shapes are those of a net that is not divided: what tensor parallelism cuts into layers beside each other is one
tensor. `run`: a `Run`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.optim.frozen import restore, trained_state
from vlpipe.models.optim.groups import Defaults, in_order
from vlpipe.models.parallel.checkpoints import Pieces, read
from vlpipe.models.parallel.sharded import placed
from vlpipe.models.parallel.tensor import parts_of
from vlpipe.pipeline.errors import VlpipeError


def divided_state(run: Any) -> tuple[dict[str, Tensor | Pieces], dict[str, Any]]:
    """Returns what `Run.state` does as (name -> tensor, which may be divided; JSON values)."""
    parts, own = parts_of(run.net), trained_state(run.net.state_dict(), run.frozen)
    tensors = dict(_whole("net", own, parts))
    by_key: dict[str, dict[str, Tensor]] = {}
    for name, state in _moments(run):
        for key, value in state.items():
            if isinstance(value, Tensor):
                by_key.setdefault(key, {})[name] = value
    for key, values in by_key.items():
        tensors |= _whole(f"optimiser.{key}", values, parts)
    notes = {
        "step": run.step,
        "rows": run.rows,
        "sums": {name: float(v) for name, v in run.sums.items()},
        "num_summed": {name: int(n) for name, n in run.num_summed.items()},
        "streams": run.streams or distributed.world_size(),
    }
    return tensors, notes


def _whole(
    prefix: str, values: Mapping[str, Tensor], parts: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Tensor | Pieces]]:
    """Yields (name, value) without parts of a tensor: the whole is `Pieces`, a number is that of the first part."""
    whole_of = {part: name for name, own in parts.items() for part in own}
    for name, value in values.items():
        whole = whole_of.get(name, name)
        if value.is_meta or name != parts.get(whole, [name])[0]:  # others have what is without memory
            continue
        is_cut = whole != name and value.ndim > 0
        yield f"{prefix}.{whole}", Pieces.beside([values[n] for n in parts[whole]]) if is_cut else value


def _moments(run: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, state in its optimiser) of each trained parameter."""
    names = {id(p): name for name, p in run.net.named_parameters()}
    for p, state in run.states():
        yield names[id(p)], state


def restore_divided(run: Any, folder: Path) -> None:
    """Sets the state of `run` to the one in a folder of `DividedCheckpoints`, of any mesh."""
    own, params, moments = run.net.state_dict(), dict(run.net.named_parameters()), dict(_moments(run))
    parts = parts_of(run.net)
    numbers: list[tuple[str, Sequence[str]]] = []  # of which all parts have one

    def wanted(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | Pieces | None:
        kind, _, rest = name.partition(".")
        key, _, parameter = rest.partition(".")
        of_net = kind == "net"
        names = parts.get(rest, [rest]) if of_net else parts.get(parameter, [parameter])
        values = [(own if of_net else params)[n] for n in names]
        if values[0].is_meta:
            return None
        like = _beside([value.detach() for value in values])
        if of_net:
            return like
        if like.shape != shape:
            moments[names[0]][key] = torch.zeros(shape, dtype=dtype, device=run.device)
            numbers.append((key, names))
            return moments[names[0]][key]
        for n in names:
            moments[n][key] = torch.zeros_like(params[n], dtype=dtype).detach().to(run.device)
        return _beside([moments[n][key] for n in names])

    try:
        notes = read(folder, wanted)
    except KeyError as error:
        raise VlpipeError(
            f"the checkpoint {folder} does not fit the model: unknown {error}; remove it to resume from an older one"
        ) from error
    except RuntimeError as error:
        raise VlpipeError(str(error)) from error
    for key, names in numbers:
        for n in names[1:]:
            moments[n][key] = moments[names[0]][key].clone()
    # tells modules that count what they hold
    restore(run.net, trained_state(own, run.frozen), run.frozen)
    run.step, run.streams, run.num_summed = notes["step"], notes["streams"], notes["num_summed"]
    run.rows = [(step, name, value) for step, name, value in notes["rows"]]
    run.sums = {n: torch.tensor(v, dtype=torch.float64, device=run.device) for n, v in notes["sums"].items()}


def _beside(values: Sequence[Tensor]) -> Tensor | Pieces:
    return values[0] if len(values) == 1 else Pieces.beside(values)


def restore_parts(run: Any, state: Mapping[str, Any]) -> None:
    """Sets weights and optimiser of `run` to this worker's part of what `Run.state` returned."""
    own, moments = run.net.state_dict(), {id(p): found for p, found in run.states()}
    parts, params = parts_of(run.net), dict[str, Tensor](run.net.named_parameters())
    for whole, value in state["net"].items():
        for name, part in _cut(value, parts.get(whole, [whole])):
            if not own[name].is_meta:
                own[name].copy_(placed(part, own[name]))
    restore(run.net, trained_state(own, run.frozen), run.frozen)
    whole_of = {name: name for name in params}
    whole_of |= {part: whole for whole, names in parts.items() for part in names}
    names_of = {id(p): whole_of[name] for name, p in params.items()}
    saved = state["optimiser"].get("optimisers", [state["optimiser"]])
    recipe = run.recipe
    for one, trained in zip(
        saved, in_order(run.net, Defaults(**recipe.defaults()), recipe.groups), strict=True
    ):
        order: list[str] = list(dict.fromkeys(names_of[id(p)] for p in trained))
        for i, whole in enumerate(order):
            for key, value in one["state"].get(i, {}).items():
                for name, part in _cut(value, parts.get(whole, [whole])):
                    if not params[name].is_meta:
                        moments[id(params[name])][key] = placed(part, params[name])


def _cut(value: Tensor, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, its part of a whole tensor); of a number, each has a copy."""
    if len(names) == 1:
        yield names[0], value
    elif value.ndim:
        yield from zip(names, value.chunk(len(names)), strict=True)
    else:
        yield from ((name, value.clone()) for name in names)
