"""Checkpoints of divided tensors: each worker writes its own parts, in a thread, by torch's distributed checkpoints (DCP).

A folder `000000500` holds the state after 500 steps once it has `.metadata`, which is renamed into place at the end. Any
number of workers, with any mesh, reads it: each reads what it needs. Names and shapes are those
of a net that is not divided.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

COMPLETE = ".metadata"
NOTES = "notes"  # values other than tensors, as JSON in bytes


class Pieces:
    """What this worker has of one tensor of a checkpoint. shape: of the whole. pieces: (where it begins, piece)."""

    def __init__(self, shape: torch.Size, pieces: Sequence[tuple[torch.Size, Tensor]]) -> None:
        self.shape, self.pieces = shape, pieces

    @staticmethod
    def beside(parts: Sequence[Tensor]) -> Pieces:
        """Returns the tensor that the parts make beside each other, along their first dimension; they may be divided."""
        first, pieces = 0, []
        for part in parts:
            where, piece = _local(part)
            if piece.numel():
                pieces.append((torch.Size((first + where[0], *where[1:])), piece))
            first += part.shape[0]
        return Pieces(torch.Size((first, *parts[0].shape[1:])), pieces)

    def at(self, where: torch.Size | None) -> Tensor:
        return next(piece for begin, piece in self.pieces if begin == where)

    def copied(self) -> Pieces:
        return Pieces(self.shape, [(where, piece.to("cpu", copy=True)) for where, piece in self.pieces])

    def __deepcopy__(self, memo: Any) -> Pieces:
        return self  # torch would copy the copy

    # torch's protocol of what a checkpoint can hold
    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(where, piece.size()) for where, piece in self.pieces]

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                MetadataIndex(name, where),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    ChunkStorageMetadata(where, piece.size()),
                    TensorProperties.create_from_tensor(piece),
                    self.shape,
                ),
            )
            for where, piece in self.pieces
        ]


def _local(x: Tensor) -> tuple[Sequence[int], Tensor]:
    """Returns where what this worker has of a tensor begins, and that."""
    x = x.detach()
    if not isinstance(x, DTensor):
        return [0] * x.ndim, x
    (chunk,) = x.__create_chunk_list__()
    return chunk.offsets, x.to_local()


class _Writing(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Any:
        value = self.state_dict[index.fqn]
        return value.at(index.offset) if isinstance(value, Pieces) else super().lookup_object(index)


class _Reading(DefaultLoadPlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # torch's own makes None of what is no tensor
        self.original_state_dict = self.state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        value = self.state_dict[index.fqn]
        return value.at(index.offset) if isinstance(value, Pieces) else super().lookup_tensor(index)


class DividedCheckpoints:
    """The newest `keep` checkpoints in `folder`, which all workers share. All of them call each method together."""

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep
        self._group: Any = None
        self._last: tuple[int, Future[Any]] | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor | Pieces], notes: Mapping[str, Any]) -> None:
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
        state: dict[str, Any] = {name: _copied(value) for name, value in tensors.items()}
        state[NOTES] = torch.frombuffer(bytearray(json.dumps(notes).encode()), dtype=torch.uint8)
        writing = async_save(state, checkpoint_id=target, process_group=self._group, planner=_Writing())
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


def read(
    folder: Path, wanted: Callable[[str, torch.Size, torch.dtype], Tensor | Pieces | None]
) -> dict[str, Any]:
    """Fills the tensors that `wanted(name, shape, dtype)` returns, for each in a checkpoint, in place; returns its notes.

    None: this worker does not need it.

    All workers must call this together. Raises RuntimeError if the folder cannot be read.
    """
    reader = FileSystemReader(folder)
    try:
        stored = reader.read_metadata().state_dict_metadata
        state: dict[str, Any] = {}
        for name, about in stored.items():
            if not isinstance(about, TensorStorageMetadata):
                raise RuntimeError(f"{name} is not a tensor")
            shape, dtype = about.size, about.properties.dtype
            place = torch.empty(shape, dtype=dtype) if name == NOTES else wanted(name, shape, dtype)
            if place is not None:
                state[name] = place
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one worker reads all
            load(state, storage_reader=reader, planner=_Reading(), no_dist=not dist.is_initialized())
    except (OSError, EOFError, CheckpointException) as error:
        raise RuntimeError(
            f"checkpoint {folder} cannot be read ({error}); remove it to resume from an older one"
        ) from error
    notes: dict[str, Any] = json.loads(bytes(state[NOTES].tolist()))
    return notes


def _copied(value: Tensor | Pieces) -> Tensor | Pieces:
    """Returns a copy of what is in the CPU's memory; tensors elsewhere are copied when they are moved there."""
    if isinstance(value, Pieces):
        return value.copied()
    value = value.detach()
    local = value.to_local() if isinstance(value, DTensor) else value
    return value.clone() if local.device.type == "cpu" else value
