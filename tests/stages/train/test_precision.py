"""fp16 with loss scaling, activation checkpointing, and checkpoints that are written beside the training."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from vlpipe.models.flops import FlopMeter
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.optim.parameter_group import ParameterGroup
from vlpipe.models.recompute import recompute_layers
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.train.checkpoint import Checkpoints, Writer, writing
from vlpipe.stages.train.fit import need_finite, train_step
from vlpipe.stages.train.gradients import accumulate
from vlpipe.stages.train.recipe import Task
from vlpipe.stages.train.run import Run, prepare
from vlpipe.stages.train.train import Train

Make = Callable[..., Train]


def steps(run: Run, num: int) -> None:
    with run.loader.batches(run.step) as batches:
        for _ in range(num):
            train_step(run, list(islice(batches, run.recipe.accumulate)))


def weights(run: Run) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.net.parameters()]


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_fp16_follows_fp32(squares: Dataset, recipe_of: Make, optimiser: str) -> None:
    """The gradient of one step to 1 % of its norm, and it is not that of fp32 to the last bit."""
    recipe = recipe_of(objectives=["lm:Lm"], steps=10, optimiser=optimiser)
    found = {}
    for precision in ("fp32", "fp16"):
        run = prepare(replace(recipe, precision=precision), [squares])
        before = weights(run)
        run.net.eval()  # without dropout, whose masks differ between types
        steps(run, 1)
        assert not all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
        found[precision] = run
    norms = [float(run.sums["grad_norm"]) for run in found.values()]
    assert norms[0] != norms[1]
    assert norms[1] == pytest.approx(norms[0], rel=0.01)


def test_a_step_that_overflows_fp16_is_left_out_and_lowers_the_scale(
    squares: Dataset, recipe_of: Make
) -> None:
    run = prepare(recipe_of(objectives=["lm:Lm"], steps=10, precision="fp16"), [squares])
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**40})
    before = weights(run)
    steps(run, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
    assert run.scaler.get_scale() == 2.0**39
    need_finite(run)  # the loss is
    restored = prepare(run.recipe, [squares])  # type: ignore[arg-type]
    restored.restore(run.state())
    assert restored.scaler.get_scale() == 2.0**39
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**-11})
    steps(run, 1)
    with pytest.raises(VlpipeError, match="not finite in fp16 at any scale"):
        need_finite(run)


def test_recomputed_layers_have_the_same_gradients(squares: Dataset, recipe_of: Make) -> None:
    """To the last bit, dropout included; and a layer is computed twice."""
    recipe = recipe_of(objectives=["itc:Itc", "itm:Itm", "lm:Lm"], model={"dropout": 0.1})
    grads, calls = [], []
    for recompute in (False, True):
        run = prepare(recipe, [squares])
        count = 0

        def counted(*_: Any) -> None:
            nonlocal count
            count += 1

        run.net.model.vision.blocks[0].qkv.register_forward_hook(counted)
        if recompute:
            # a layer of the image tower, and the four modules in one of the text tower
            assert recompute_layers(run.net.model) == 5
        with run.loader.batches(0) as batches:
            torch.manual_seed(0)
            accumulate(run, [next(batches)])
        grads.append([p.grad for p in run.net.parameters() if p.grad is not None])
        calls.append(count)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert calls == [1, 2]


def test_a_recipe_can_ask_for_it(squares: Dataset, recipe_of: Make, tmp_path: Path) -> None:
    one, other = (
        run_gather(recipe_of(steps=3, recompute=on), [squares], tmp_path / str(on)) for on in (False, True)
    )
    assert one.table == other.table
    assert "recompute" in Train.ADDED


def test_layers_with_a_trained_batch_norm_are_computed_once() -> None:
    """A second pass would count in their statistics."""
    plain, counting = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert recompute_layers(nn.ModuleDict({"layers": nn.ModuleList([plain, counting])})) == 1
    with pytest.raises(ValueError, match="without a batch norm that is trained"):
        recompute_layers(nn.ModuleDict({"layers": nn.ModuleList([counting])}))
    assert recompute_layers(nn.ModuleDict({"layers": nn.ModuleList([counting.eval()])})) == 1


def test_an_optimiser_without_gradient_has_no_step_in_fp16(
    squares: Dataset, recipe_of: Make, tmp_path: Path
) -> None:
    recipe = recipe_of(
        precision="fp16",
        steps=6,
        log_every=3,
        objectives=["lm:Lm", "itc:Itc"],
        groups=[ParameterGroup(match=["lm_head.*"], optimiser="sgd")],
        tasks={"captions": Task(objectives=["lm"]), "contrast": Task(objectives=["itc"])},
    )
    logged = run_gather(recipe, [squares], tmp_path / "run").table.to_pylist()
    norms = [row["value"] for row in logged if row["name"] == "grad_norm"]
    assert len(norms) == 2
    assert all(map(math.isfinite, norms))  # although the first steps overflow


def test_what_cannot_be_counted_does_not_end_a_training() -> None:
    class Odd(nn.Module):
        losses: ClassVar[dict[str, tuple[int, float]]] = {"odd": (0, 1.0)}

        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            raise RuntimeError("no gradient in evaluation mode")

    said: list[str] = []
    meter = FlopMeter(Odd(), say=said.append)
    batch = Batch({"x": Stream(torch.zeros(2, 3))}, torch.arange(2))
    for _ in range(2):
        meter.add([batch], torch.device("cpu"))
    assert meter.total is None
    assert said == ["TFLOP/s are not counted: RuntimeError: no gradient in evaluation mode"]
    with pytest.raises(RuntimeError):
        FlopMeter(Odd()).add([batch], torch.device("cpu"))


def test_tensors_that_share_memory_are_copied_once(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    with writing(Checkpoints(str(tmp_path))) as writer:
        writer.save(1, {"step": 1, "one": weight, "tied": weight, "part": weight[:50]})
    found = Checkpoints(str(tmp_path)).latest()
    assert found is not None
    assert found["one"].data_ptr() == found["tied"].data_ptr()
    assert torch.equal(found["part"], weight[:50])


def test_a_model_without_layers_cannot_be_recomputed() -> None:
    with pytest.raises(ValueError, match="Linear has no layers"):
        recompute_layers(nn.Linear(2, 2))


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    weight, rows = nn.Parameter(torch.zeros(3)), [1]
    checkpoints = Checkpoints(str(tmp_path))
    with writing(checkpoints) as writer:
        writer.save(1, {"step": 1, "weight": weight, "rows": rows})
        weight.data += 1
        rows.append(2)
    found = checkpoints.latest()
    assert found is not None
    assert (found["step"], found["rows"], found["weight"].tolist()) == (1, [1], [0, 0, 0])


def test_checkpoints_are_written_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And an error of one is raised by the next, or at the end."""
    free, running = threading.Event(), []

    def save(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
        running.append(step)
        free.wait(10)
        if step == 2:
            raise OSError("disk full")

    monkeypatch.setattr(Checkpoints, "save", save)
    writer = Writer(Checkpoints(str(tmp_path)))
    writer.save(1, {})  # returns although it is not written
    free.set()
    writer.save(2, {})
    with pytest.raises(OSError, match="disk full"):
        writer.save(3, {})
    writer.wait()
    assert running == [1, 2]
