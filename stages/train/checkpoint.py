"""Checkpoints of the complete training state, written atomically."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.store import Store


@dataclass(frozen=True)
class Checkpoints:
    """The newest `keep` checkpoints of a run, as files in `folder`: `000000500.pt` is the state after 500 steps."""

    folder: str
    keep: int = 2

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes the state after `step` steps, then deletes all but the newest `keep` checkpoints."""
        import torch

        store = Store(self.folder)
        with store.writing(f"{step:09d}.pt") as part:
            torch.save(state, part)
        kept = self._finished(store)[-self.keep :]
        for name in store.list():
            if name not in kept:  # older checkpoints, and partial files of a killed run
                store.remove(name)

    def latest(self) -> dict[str, Any] | None:
        """Returns the newest state with tensors on the CPU, or None if there is no checkpoint.

        Raises VlpipeError if the file cannot be read.
        """
        import torch

        store = Store(self.folder)
        finished = self._finished(store)
        if not finished:
            return None
        path = store.path(finished[-1])
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise VlpipeError(
                f"checkpoint {path} cannot be read ({error}); remove it to resume from an older one"
            ) from error
        return state

    @staticmethod
    def _finished(store: Store) -> list[str]:
        return [name for name in store.list() if name.endswith(".pt")]
