"""Training curves while a run goes on, for TensorBoard (`--curves tensorboard:FOLDER`) and Weights & Biases
(`--curves wandb:PROJECT`). Figures are named STEP/FIGURE, such as `pretrain/loss`, at the training's own steps.

TensorBoard's files are written by `tensorboardX`; wandb obeys its own variables, such as WANDB_MODE=offline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.planned import PlannedStep, is_gather
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.alarms import alarms
from vlpipe.pipeline.inspect.roots.said import read_said
from vlpipe.pipeline.storage.store import Store

EVERY_S = 5.0
Log = Callable[[str, int, Mapping[str, float]], None]  # step of the workflow, training step, figure -> value
Tell = Callable[[str, str], None]  # step of the workflow, an alarm
Logger = tuple[Log, Tell, Callable[[], None]]  # the last one closes it


class Curves:
    """Sends the figures that running trainings say to a logger. A context manager, with a `watcher` for the runner."""

    def __init__(self, store: Store, run_id: str, where: str) -> None:
        """where: tensorboard:FOLDER or wandb:PROJECT. Raises VlpipeError for another one, or without its package."""
        kind, _, target = where.partition(":")
        makers = {"tensorboard": tensorboard, "wandb": wandb}
        if kind not in makers or not target:
            raise VlpipeError(f"--curves: wanted tensorboard:FOLDER or wandb:PROJECT, got {where!r}")
        self._store, self._run_id, self._target, self._make = store, run_id, target, makers[kind]
        self._running: dict[str, PlannedStep] = {}
        self._sent: dict[str, int] = {}  # step -> its last training step that was sent
        self._looked_s = time.monotonic()
        self.watcher = Watcher(started=self._started, finished=self._finished, tick=self._tick)

    def __enter__(self) -> Curves:
        self._log, self._tell, self._close = self._make(self._target, self._run_id)
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._running.values():
            self._send(one)
        self._close()

    def _started(self, one: PlannedStep, total: int | None) -> None:
        if is_gather(one):
            self._running[one.name] = one

    def _finished(self, one: PlannedStep) -> None:
        if self._running.pop(one.name, None) is not None:
            self._send(one)
        for text in alarms(one, self._store):
            self._tell(one.name, text)

    def _tick(self) -> None:
        if time.monotonic() - self._looked_s >= EVERY_S:
            for one in self._running.values():
                self._send(one)
            self._looked_s = time.monotonic()

    def _send(self, one: PlannedStep) -> None:
        by_step: dict[int, dict[str, float]] = {}
        for at, name, value in read_said(self._store, one.folder).points:
            if at > self._sent.get(one.name, 0):
                by_step.setdefault(at, {})[name] = value
        for at, found in sorted(by_step.items()):
            self._log(one.name, at, found)
            self._sent[one.name] = at


def tensorboard(folder: str, run_id: str) -> Logger:
    """Returns what writes figures to FOLDER/RUN; alarms become its texts STEP/alarms."""
    try:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
    except ImportError as error:
        raise VlpipeError(
            "--curves tensorboard needs the package tensorboardX, which is not installed"
        ) from error
    writer = SummaryWriter(f"{folder}/{run_id}")

    def log(step: str, at: int, found: Mapping[str, float]) -> None:
        for name, value in found.items():
            writer.add_scalar(f"{step}/{name}", value, at)
        writer.flush()

    def tell(step: str, text: str) -> None:
        writer.add_text(f"{step}/alarms", text)
        writer.flush()

    return log, tell, writer.close


def wandb(project: str, run_id: str) -> Logger:
    """Returns what logs figures to a run of a project; alarms become its alerts."""
    try:
        import wandb as package
    except ImportError as error:
        raise VlpipeError("--curves wandb needs the package wandb, which is not installed") from error
    run: Any = package.init(project=project, name=run_id)
    known: set[str] = set()

    def log(step: str, at: int, found: Mapping[str, float]) -> None:
        if step not in known:  # each training has an axis of its own
            run.define_metric(f"{step}/step")
            run.define_metric(f"{step}/*", step_metric=f"{step}/step")
            known.add(step)
        run.log({f"{step}/step": at, **{f"{step}/{name}": value for name, value in found.items()}})

    def tell(step: str, text: str) -> None:
        run.alert(title=f"vlpipe: {step}", text=text)

    return log, tell, run.finish
