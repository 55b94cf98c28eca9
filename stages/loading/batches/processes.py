"""Makes training batches in processes, by torch's DataLoader: this process reads the rows, the others decode and augment.

Each process gets the encoded rows of one micro-batch at a time, so rows are in memory once, whatever the number of
processes. Batches come in the order of their samples.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.batches.make_batch import BatchMaker, Samples

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Batch

PER_PROCESS = 2  # micro-batches that wait for a process, and that wait after it
MAX_PROCESSES = 16
SHARED = "/dev/shm"
KILLED = (-signal.SIGKILL, -signal.SIGBUS)


def num_processes(wanted: int | None, *, gpu: bool) -> int:
    """Returns the number of loader processes of a training worker: `wanted`; None: 0 on a CPU, which trains already.

    With a GPU, None is the worker's share of the machine's cores, at most MAX_PROCESSES.
    """
    if wanted is not None or not gpu:
        return wanted or 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by Ray Train and torchrun
    return max(1, min(cores // workers, MAX_PROCESSES))


class _Batches:
    """A map-style dataset for DataLoader whose keys are `Samples`: the key says all."""

    def __init__(self, make: BatchMaker) -> None:
        self.make = make

    def __getitem__(self, samples: Samples) -> tuple[Batch, float] | VlpipeError:
        began = time.perf_counter()
        try:
            return self.make(samples), time.perf_counter() - began
        except VlpipeError as error:
            # without DataLoader's traceback, and of a class that can be sent
            return VlpipeError(str(error))


def made_in_processes(
    samples: Iterator[Samples], make: BatchMaker, num: int, *, pin: bool
) -> Generator[tuple[Batch, float]]:
    """Yields (batch, seconds in its process) of each of the endless `samples`, in order, made in `num` processes.

    pin: tensors are in pinned memory, for asynchronous copies to a GPU. A process holds at most PER_PROCESS encoded
    micro-batches and as many finished ones, in shared memory. Raises VlpipeError if a process is killed, and errors of
    `make`.
    """
    import torch
    from torch.utils.data import DataLoader

    context = multiprocessing.get_context("forkserver")  # a fork of this process could inherit locked locks
    context.set_forkserver_preload(["torch", "vlpipe.models.interface.batch", __name__])
    loader: Any = DataLoader(
        _Batches(make),  # type: ignore[arg-type]
        batch_size=None,
        sampler=samples,
        num_workers=num,
        collate_fn=_as_it_is,
        worker_init_fn=_end_with_parent,
        prefetch_factor=PER_PROCESS,
        pin_memory=pin,
        multiprocessing_context=context,
        generator=torch.Generator(),  # its own: the draws of the training are those of any number of processes
    )
    with closing(_stopping(_started(loader))) as made:
        for found in made:
            if isinstance(found, VlpipeError):
                raise found
            yield found


def _started(loader: Any) -> Any:
    """Starts the processes and returns DataLoader's iterator."""
    try:
        return iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise VlpipeError(
            f"training: makers and corruptors cannot be sent to the loader's processes ({error}); define what they hold at "
            "the top level of a module, or set loader_processes: 0"
        ) from error


def _stopping(batches: Any) -> Generator[Any]:
    """Yields the items of DataLoader's iterator, and stops its processes at the end."""
    try:
        yield from batches
    except (RuntimeError, EOFError, OSError) as error:  # the last two: the sender of a tensor was killed
        for process in batches._workers:
            process.join(0.2)
        codes = [process.exitcode for process in batches._workers if process.exitcode is not None]
        if not codes:
            raise
        if codes[0] not in KILLED:
            raise VlpipeError(
                f"training: a process of the loader ended with exit code {codes[0]}; its own error is above"
            ) from error
        free = shutil.disk_usage(SHARED).free / 1e6 if os.path.exists(SHARED) else 0
        raise VlpipeError(
            f"training: a process of the loader was killed, perhaps for lack of memory ({SHARED} has {free:.0f} MB free); "
            "lower loader_processes or batch_size"
        ) from error
    finally:
        batches._shutdown_workers()


def _end_with_parent(_: int) -> None:
    """Ends this process when the one that reads the rows has ended; DataLoader looks at the fork server only, which lives on
    as long as this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _as_it_is(made: Any) -> Any:
    return made
