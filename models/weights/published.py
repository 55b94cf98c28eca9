"""State dicts as others published them: read without running anything in them, unwrapped, and checked name by name."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vlpipe.models.weights.hub import local_folder

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".tar")  # older published files end in .pth.tar
# what torch.load raises where a pickle ends early, besides UnpicklingError
BROKEN_PICKLE = (EOFError, RuntimeError, ValueError, LookupError, AssertionError, struct.error)
MAX_NAMES = 8  # of a kind in an error


def read_state(source: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a file, or from the only weights file of a folder or hub id.

    A dict below `state_dict` or `model` is taken out of a training checkpoint, and DataParallel's `module.` off the names.
    ValueError: not such a file, or one that would run code when read.
    """
    path = weights_file(source)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"weights: {path} is not a safetensors file, or is damaged: {error}") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *BROKEN_PICKLE, OSError) as error:
        raise ValueError(f"weights: {path} cannot be read as a file of tensors: {_reason(error)}") from error
    for name in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not any(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(
            f"weights: {path} must contain a dict name -> tensor, but contains a {type(found).__name__}"
        )
    return {str(k).removeprefix("module."): v for k, v in found.items() if isinstance(v, Tensor)}


def _reason(error: Exception) -> str:
    """What torch.load says, without its advice to run the code in the file."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it contains objects of {found[1]}, which could run code when read; save only the state_dict"
    if "weights_only" in text:
        return "it is damaged, or contains other objects than tensors"
    return text[:300] or type(error).__name__


def weights_file(source: str | Path) -> Path:
    """The file itself, or the only file with one of ENDINGS in the folder (or hub repository)."""
    path = Path(source)
    if path.is_file():
        return path
    folder = local_folder(source, [f"*{ending}" for ending in ENDINGS])
    found = sorted(p for p in folder.iterdir() if p.suffix in ENDINGS)
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise ValueError(
            f"weights: {folder} must contain exactly one file ending in {', '.join(ENDINGS)}; it contains {names}"
        )
    return found[0]


def fill(net: nn.Module, state: Mapping[str, Tensor], who: str) -> None:
    """Copy `state` into `net`. ValueError names what is missing, unknown or of another shape.

    BatchNorm's `num_batches_tracked`, which files from before torch 0.4 lack, counts training steps and is never needed.
    """
    wanted = net.state_dict()
    missing = [n for n in wanted if n not in state and not n.endswith(".num_batches_tracked")]
    unknown = [n for n in state if n not in wanted]
    shapes = [
        f"{n} {tuple(state[n].shape)} instead of {tuple(wanted[n].shape)}"
        for n in wanted
        if n in state and state[n].shape != wanted[n].shape
    ]
    problems = [
        f"{len(names)} {kind}: {_listed(names)}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"{who}: the weights do not fit: {'; '.join(problems)}")
    net.load_state_dict(dict(state), strict=False)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
