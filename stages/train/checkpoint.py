"""Checkpoints of the complete training state, written atomically."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
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


class Writer:
    """Writes checkpoints in a thread, one at a time, while training goes on."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copies the state to the CPU's memory and returns. Waits for the checkpoint before; raises its error, if any."""
        self.wait()
        self._last = self._pool.submit(self.checkpoints.save, step, _copied(state, {}))

    def wait(self) -> None:
        """Returns when the last checkpoint is written; raises its error, if any."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        self._pool.shutdown()


@contextmanager
def writing(checkpoints: Checkpoints) -> Iterator[Writer]:
    """Context manager that yields a `Writer`; at its end the last checkpoint is written."""
    with closing(Writer(checkpoints)) as writer:
        yield writer
        writer.wait()


def _copied(value: Any, seen: dict[Any, Any]) -> Any:
    """Returns a copy of a state on the CPU. Lists and dicts are copied too: the next steps change them.

    seen: the tensors copied so far; parameters that share their memory are copied once.
    """
    import torch

    if isinstance(value, torch.Tensor):
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if not value.numel() or key not in seen:
            seen[key] = value.detach().to("cpu", copy=True)
        return seen[key]
    if isinstance(value, Mapping):
        return {name: _copied(v, seen) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(v, seen) for v in value)
    return value
