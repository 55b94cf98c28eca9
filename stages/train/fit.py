"""The training loop: `fit` runs on each Ray Train worker; a single worker, in the process of its step.

A step depends only on the state before it: its batch is determined by the step number, its dropout masks by
(seed, step, rank). A run that is killed and resumed therefore ends with the same result as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.flops import FlopMeter, peak_flops
from vlpipe.models.folder import save
from vlpipe.models.parallel.checkpoints import DividedCheckpoints
from vlpipe.models.parallel.sharded import clip_gradients, gathered
from vlpipe.models.parallel.tensor import joined
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.train.checkpoint import Checkpoints, writing
from vlpipe.stages.train.gradients import accumulate
from vlpipe.stages.train.itm_alarm import ALARM, collapsed, message
from vlpipe.stages.train.progress import Progress
from vlpipe.stages.train.recipe import Recipe
from vlpipe.stages.train.run import Run, prepare
from vlpipe.stages.train.runtime import reproducible, seed_all
from vlpipe.stages.train.schedule import learning_rate
from vlpipe.stages.train.workers.divided import divided_state, restore_divided

MIN_SCALE = 2.0**-10  # of the loss in fp16; it starts at 2 ** 16 and is halved by each step that overflows


def fit(config: Mapping[str, Any]) -> None:
    """Trains `config["recipe"]` (a `Recipe`) on `config["inputs"]` (`Dataset`s).

    Resumes from the newest checkpoint in the folder `config["work"]`, if there is one. Rank 0 writes `result` in that
    folder: the model, `tokenizer/` and `losses.json`.
    """
    work, recipe = Path(config["work"]), config["recipe"]
    if recipe.num_processes != distributed.world_size():  # `least_processes`
        recipe = replace(recipe, processes=distributed.world_size())
    checkpoints = Checkpoints(str(work / "checkpoints"))
    with reproducible(recipe.deterministic):
        run = prepare(recipe, config["inputs"])
        resume(run, checkpoints)
        train(run, work / "progress.log", checkpoints)
        write_result(run, work / "result")


def resume(run: Run, checkpoints: Checkpoints) -> None:
    """Sets the state to that of the newest checkpoint, if there is one; nothing else refers to what was read then."""
    divided, state = DividedCheckpoints(checkpoints.folder).latest(), checkpoints.latest()
    if divided is not None and (state is None or divided[0] > state["step"]):
        restore_divided(run, divided[1])
    elif state is not None:
        run.restore(state)


def train(run: Run, progress_log: Path, checkpoints: Checkpoints) -> None:
    """Runs the remaining steps; logs losses, checks for ITM collapse (`itm_alarm`) and saves checkpoints on the way."""
    recipe, rank, world_size = run.recipe, distributed.rank(), distributed.world_size()
    is_first = distributed.is_first()
    peak = peak_flops(torch.cuda.get_device_name(run.device)) if run.device.type == "cuda" else None
    progress = Progress(
        progress_log,
        step=run.step,
        num_steps=run.num_steps,
        batch_size=recipe.batch_size,
        peak_flops=None if peak is None else peak * world_size,
    )
    # the batches of detectors are of another kind; of cut layers a part is counted
    meter = (
        FlopMeter(run.net, run.dtype, progress.say) if isinstance(recipe, Recipe) and not run.is_cut else None
    )
    divided = DividedCheckpoints(checkpoints.folder)
    # of num_workers, or as a run of an earlier version began; detectors have no losses that depend on it
    streams = {"streams": run.streams} if isinstance(recipe, Recipe) and run.streams else {}
    with (
        run.loader.batches(run.step, rank, world_size, run.device, **streams) as batches,
        writing(checkpoints) as writer,
    ):
        while run.step < run.num_steps:
            parts = progress.waiting(batches, recipe.micro_batches)
            if meter is not None:
                meter.add(parts, run.device)
            train_step(run, parts)
            if is_first:
                progress.stepped(run.step)
            if _due(run, recipe.log_every) or _due(run, recipe.checkpoint_every):
                need_finite(run)
            if _due(run, recipe.log_every):
                means = log(run)
                alarm = watch(run)
                if is_first:
                    flops = None if meter is None else meter.total
                    progress.report(run.step, means, run.loader.making.samples_per_s, flops)
                    if alarm:
                        progress.say(alarm)
            if _due(run, recipe.checkpoint_every):
                run.share_sums()
                if run.is_divided:
                    divided.save(run.step, *divided_state(run))
                elif rank == 0:
                    writer.save(run.step, run.state())
    divided.wait()


def _due(run: Run, every: int) -> bool:
    return run.step % every == 0 or run.step == run.num_steps


def train_step(run: Run, batches: Sequence[Any]) -> None:
    """Runs one optimiser step on this rank's micro-batches and adds its losses and diagnostics to `run.sums`."""
    recipe = run.recipe
    seed_all(recipe.seed, run.step, distributed.rank())
    lr = learning_rate(recipe, run.step, run.num_steps, run.loader.samples_per_epoch)
    for group in run.optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)  # a checkpoint of an earlier version has no scale
    values = accumulate(run, batches)
    values["grad_norm"] = clip(run)
    run.unchecked.append((run.step, values))
    for optimiser in run.optimisers_with_gradient():
        # with fp16, no step if a gradient is not finite: the scale is halved instead
        run.scaler.step(optimiser)
    run.scaler.update()
    run.optimiser.zero_grad(set_to_none=True)
    run.net.constrain()
    for name, value in named_by_task(run, batches, values).items():
        counts: Tensor | int = 1
        if name == "grad_norm" and run.scaler.is_enabled():  # it is not finite in steps that were left out
            counts, value = value.isfinite().long(), value.nan_to_num(0.0, 0.0, 0.0)
        run.sums[name] = run.sums[name] + value if name in run.sums else value
        run.num_summed[name] = run.num_summed.get(name, 0) + counts
    run.step += 1


def named_by_task(run: Run, batches: Sequence[Any], values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the values of a step; if the recipe has tasks, those of objectives are named "task/loss"."""
    task = getattr(batches[0], "task", "")
    common = ("loss", "grad_norm")
    return {f"{task}/{n}" if task and n not in common else n: value for n, value in values.items()}


def clip(run: Run) -> Tensor:
    """Clips the gradient to an L2 norm of `clip_norm` (None: no clipping); returns the norm before clipping, a scalar.

    With fp16, gradients are divided by the scale of the loss first.
    """
    for optimiser in run.optimisers_with_gradient():
        run.scaler.unscale_(optimiser)
    params = [p for p in run.net.parameters() if p.grad is not None]
    if run.pipeline is not None:
        return run.pipeline.clip_gradients(run.recipe.clip_norm or math.inf).double()
    if run.sharded is not None:
        return clip_gradients(params, run.recipe.clip_norm or math.inf).double()
    return torch.nn.utils.clip_grad_norm_(params, run.recipe.clip_norm or math.inf).double()


def need_finite(run: Run) -> None:
    """Raises VlpipeError if the loss or gradient of a step since the last call was not finite.

    It is called before each log and checkpoint, not in each step: reading a value waits for the GPU. With fp16, a step whose
    gradient alone is not finite was left out, and lowered the scale of the loss; a scale below MIN_SCALE is an error.
    """
    if not run.unchecked:
        return
    scaled = run.scaler.is_enabled()
    if scaled and run.scaler.get_scale() < MIN_SCALE:
        raise VlpipeError(
            f"training: gradients of step {run.step - 1} and those before it are not finite in fp16 at any scale of the "
            "loss. Lower lr, or set precision: bf16 or fp32"
        )
    checked = [v["loss"] if scaled else v["grad_norm"] + v["loss"] for _, v in run.unchecked]
    sums = torch.stack(checked).tolist()
    for total, (step, values) in zip(sums, run.unchecked, strict=True):
        if not math.isfinite(total):
            found = {"gradient norm" if name == "grad_norm" else name: v for name, v in values.items()}
            raise VlpipeError(
                f"training: loss or gradient of step {step} is not finite ("
                + ", ".join(f"{name} {float(value):.6g}" for name, value in found.items())
                + "); checkpoints hold states before it only. Lower lr, raise warmup_steps, or set precision: fp32"
            )
    run.unchecked = []


def log(run: Run) -> dict[str, float]:
    """Appends one row per loss and diagnostic, and one for `lr`, to `run.rows`. Returns name -> value.

    Values are means over ranks and over those steps since the last log that computed them, so they are equal on all ranks.
    """
    means = torch.stack([total / _at_least_1(run.num_summed[name]) for name, total in run.sums.items()])
    if distributed.world_size() > 1:
        means = distributed.total(means) / distributed.world_size()
    found = dict(zip(run.sums, means.tolist(), strict=True))
    found["lr"] = float(run.optimiser.param_groups[0]["lr"])
    run.rows += [(run.step, name, value) for name, value in found.items()]
    run.sums, run.num_summed = {}, {}
    return found


def _at_least_1(count: Tensor | int) -> Tensor | int:
    return count.clamp(min=1) if isinstance(count, Tensor) else count


def watch(run: Run) -> str:
    """Returns the alarm message at the first log that shows ITM collapse, else "". Called after each log.

    It is also stored in `run.rows`, as `collapse_alarm` with the mean ITM loss. Raises VlpipeError instead if `on_collapse`
    is "fail". Detectors have no ITM loss: only a `Recipe` is checked.
    """
    if not isinstance(run.recipe, Recipe):
        return ""
    after = run.recipe.warmup_steps + run.recipe.collapse_after
    loss = collapsed(run.rows, after)
    if loss is None or any(name == ALARM for _, name, _ in run.rows):
        return ""
    if run.recipe.on_collapse == "fail":
        raise VlpipeError(message(run.step, loss))
    run.rows.append((run.step, ALARM, loss))
    return message(run.step, loss)


def write_result(run: Run, folder: Path) -> None:
    """Writes the model, `tokenizer/` and `losses.json`, a list of [step, name, value]. All ranks call it together."""
    models = {folder: run.net.model}
    if isinstance(run.recipe, Recipe) and run.recipe.keep_teachers:
        models |= {folder / "teachers" / name: teacher.copy for name, teacher in run.net.teachers.items()}
    for target, model in models.items():
        state = None if run.sharded is None else joined(model, gathered(model.state_dict()))
        state = state if run.pipeline is None else run.pipeline.gathered(model.state_dict())
        if distributed.is_first():
            save(model, target, state)
            if target != folder and run.loader.tokenizer is not None:
                run.loader.tokenizer.save(target / "tokenizer")
    if not distributed.is_first():
        return
    if run.loader.tokenizer is not None:
        run.loader.tokenizer.save(folder / "tokenizer")
    (folder / "losses.json").write_text(json.dumps(run.rows))
