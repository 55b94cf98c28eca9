"""Checkpoints of divided tensors: each worker writes its own parts, in a thread, by torch's distributed checkpoints (DCP).

A folder `000000500` holds the state after 500 steps once it has `.metadata`, which is renamed into place at the end. Any
number of workers, with any mesh, reads it: each reads what it needs.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

COMPLETE = ".metadata"
NOTES = "notes"  # values other than tensors, as JSON in bytes


class DividedCheckpoints:
    """The newest `keep` checkpoints in `folder`, which all workers share. All of them call each method together."""

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep
        self._group: Any = None
        self._last: tuple[int, Future[Any]] | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Copies the state to the CPU's memory and returns; waits for the checkpoint before, and raises its error, if any.

        notes: JSON values, equal on all workers.
        """
        self.wait()
        if self._group is None:
            self._group = dist.new_group(backend="gloo")  # its exchanges are not those of training
        target = self.folder / f"{step:09d}"
        if dist.get_rank() == 0:
            shutil.rmtree(target, ignore_errors=True)  # of a killed run
            self.folder.mkdir(parents=True, exist_ok=True)
        dist.barrier(self._group)
        state = {name: _copied(value.detach()) for name, value in tensors.items()}
        state[NOTES] = torch.frombuffer(bytearray(json.dumps(notes).encode()), dtype=torch.uint8)
        writing = async_save(state, checkpoint_id=target, process_group=self._group)
        assert isinstance(writing, Future)
        self._last = step, writing

    def wait(self) -> None:
        """Returns when the last checkpoint is written and old ones are removed; raises its error, if any."""
        last, self._last = self._last, None
        if last is None:
            return
        last[1].result()
        if dist.get_rank() == 0:
            kept = {path for _, path in self._finished()[-self.keep :]}
            for path in set(self.folder.iterdir()) - kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def latest(self) -> tuple[int, Path] | None:
        """Returns the newest checkpoint: (its step, its folder); None if there is none."""
        return next(reversed(self._finished()), None)

    def _finished(self) -> list[tuple[int, Path]]:
        found = self.folder.glob(f"*/{COMPLETE}")
        return sorted((int(path.parent.name), path.parent) for path in found)


def read(folder: Path, wanted: Callable[[str, torch.Size, torch.dtype], Tensor | None]) -> dict[str, Any]:
    """Fills the tensors that `wanted(name, shape, dtype)` returns, for each in a checkpoint, in place; returns its notes.

    None: this worker does not need it.

    All workers must call this together. Raises RuntimeError if the folder cannot be read.
    """
    reader = FileSystemReader(folder)
    try:
        stored = reader.read_metadata().state_dict_metadata
        state: dict[str, Tensor] = {}
        for name, about in stored.items():
            if not isinstance(about, TensorStorageMetadata):
                raise RuntimeError(f"{name} is not a tensor")
            shape, dtype = about.size, about.properties.dtype
            place = torch.empty(shape, dtype=dtype) if name == NOTES else wanted(name, shape, dtype)
            if place is not None:
                state[name] = place
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one worker reads all
            load(state, storage_reader=reader, no_dist=not dist.is_initialized())
    except (OSError, EOFError, CheckpointException) as error:
        raise RuntimeError(
            f"checkpoint {folder} cannot be read ({error}); remove it to resume from an older one"
        ) from error
    notes: dict[str, Any] = json.loads(bytes(state[NOTES].tolist()))
    return notes


def _copied(value: Tensor) -> Tensor:
    """Returns a copy of what is in the CPU's memory; what is elsewhere is copied when it is moved there."""
    local = value.to_local() if isinstance(value, DTensor) else value
    return value.clone() if local.device.type == "cpu" else value
