from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import GatherOutput, run_gather
from vlpipe.stages.common.row import LOSSES
from vlpipe.stages.train import fit as fit_module
from vlpipe.stages.train.itm_alarm import ALARM
from vlpipe.stages.train.run import prepare
from vlpipe.stages.train.train import Train

HERE = Path(__file__).parent
Make = Callable[..., Train]
SHORT = {"text": {"max_length": 12}}


def curve(got: GatherOutput, name: str) -> list[float]:
    return [row["value"] for row in got.table.to_pylist() if row["name"] == name]


def outcome(got: GatherOutput) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    files = (path for path in sorted(got.artifacts.rglob("*")) if path.is_file())
    return got.table.to_pylist(), {str(p.relative_to(got.artifacts)): p.read_bytes() for p in files}


def test_it_learns_and_leaves_a_model(squares: Dataset, recipe_of: Make, tmp_path: Path) -> None:
    lines: list[str] = []
    objectives = [{"use": "itc:Itc", "queue_size": 0}, "lm:Lm"]  # a filling queue would make ITC harder
    recipe = recipe_of(steps=100, log_every=20, lr=3e-3, batch_size=24, objectives=objectives)
    got = run_gather(recipe, [squares], tmp_path / "run", say=lines.append)
    assert got.table.schema == LOSSES
    assert curve(got, "lm")[-1] < 0.5 * curve(got, "lm")[0]
    assert curve(got, "loss")[-1] < 0.9 * curve(got, "loss")[0]
    assert [row["step"] for row in got.table.to_pylist() if row["name"] == "loss"] == [20, 40, 60, 80, 100]
    assert {"loss", "itc", "temp", "lm", "grad_norm", "lr"} == set(got.table["name"].to_pylist())
    assert sorted(outcome(got)[1]) == [
        "config.json",
        "model.safetensors",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.txt",
    ]
    assert Blip.load(got.artifacts).config.vocab_size == Tokenizer.load(got.artifacts).vocab_size
    assert len(lines) == 5
    assert lines[0].startswith("step 20/100  loss ")
    assert "samples/s" in lines[0]
    assert sorted(p.name for p in (tmp_path / "run" / "work" / "checkpoints").iterdir()) == ["000000100.pt"]


def test_same_seed_same_bytes(squares: Dataset, recipe_of: Make, tmp_path: Path) -> None:
    one, two, other = (
        outcome(run_gather(recipe_of(steps=4, seed=seed), [squares], tmp_path / f"run{k}"))
        for k, seed in enumerate((0, 0, 1))
    )
    assert one == two
    assert one[0] != other[0]
    assert one[1]["model.safetensors"] != other[1]["model.safetensors"]


@pytest.fixture
def fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an objective that dies on demand."""
    monkeypatch.syspath_prepend(str(HERE))
    import worker

    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "fatal.py").write_text(worker.FATAL)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kill", [{"KILL_AT": "15"}, {"KILL_IN_SAVE": "2"}])
def test_killed_and_run_again_it_ends_as_if_it_had_not_been(
    squares: Dataset, recipe_of: Make, tmp_path: Path, fatal: Path, kill: dict[str, str]
) -> None:
    """10 steps of 2 micro-batches, 1.5 steps per epoch; loss rows and checkpoints do not fall together.

    KILL_AT 15: in step 7, between its micro-batches. KILL_IN_SAVE 2: at step 6, leaving a torn part.
    """
    recipe = recipe_of(
        steps=10,
        batch_size=32,
        accumulate=2,
        log_every=4,
        checkpoint_every=3,
        objectives=[{"use": "itc:Itc", "queue_size": 40}, "itm:Itm", "fatal:FatalLm"],
    )
    calm = outcome(run_gather(recipe, [squares], tmp_path / "calm"))
    work = tmp_path / "killed/work"
    work.mkdir(parents=True)
    config = {"recipe": recipe, "inputs": (squares,), "work": str(work)}
    (tmp_path / "jobs").write_bytes(pickle.dumps([("fit", config)]))
    env = {**os.environ, **kill, "PYTHONPATH": str(fatal), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, HERE / "worker.py", tmp_path / "jobs"], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    names = sorted(p.name for p in (work / "checkpoints").iterdir())
    assert names[0] == "000000003.pt"
    parts = [
        name for name in names[1:] if name.endswith(".part")
    ]  # a checkpoint is written while training goes on
    assert names[1:] == parts or ("KILL_AT" in kill and names[1:] == ["000000006.pt"])
    assert parts or "KILL_AT" in kill
    assert outcome(run_gather(recipe, [squares], tmp_path / "killed")) == calm
    assert {row["step"] for row in calm[0]} == {4, 8, 10}
    left = sorted(p.name for p in (work / "checkpoints").iterdir())
    assert left == ["000000009.pt", "000000010.pt"]


def test_a_finished_run_trains_no_further(squares: Dataset, recipe_of: Make, tmp_path: Path) -> None:
    """Killed after training, before the step was committed."""
    lines: list[str] = []
    first = outcome(run_gather(recipe_of(steps=3), [squares], tmp_path / "run"))
    again = outcome(run_gather(recipe_of(steps=3), [squares], tmp_path / "run", say=lines.append))
    assert first == again
    assert lines == []


def test_what_is_not_finite_stops_with_a_clear_error(
    squares: Dataset, recipe_of: Make, tmp_path: Path
) -> None:
    recipe = recipe_of(steps=30, lr=1e30, min_lr=0.0, warmup_steps=3, objectives=["lm:Lm"])
    with pytest.raises(
        VlpipeError,
        match=r"training: loss or gradient of step \d+ is not finite \(loss nan, lm nan, gradient norm nan\)",
    ):
        run_gather(recipe, [squares], tmp_path / "run")


def test_weights_of_objectives_scale_the_sum(squares: Dataset, recipe_of: Make, tmp_path: Path) -> None:
    objectives = [{"use": "itm:Itm", "weight": 0.5}, {"use": "lm:Lm", "weight": 2}]
    got = run_gather(recipe_of(steps=2, objectives=objectives), [squares], tmp_path / "run")
    for loss, itm, lm in zip(curve(got, "loss"), curve(got, "itm"), curve(got, "lm"), strict=True):
        assert loss == pytest.approx(0.5 * itm + 2 * lm, rel=1e-5)


def test_init_starts_from_another_run_with_its_tokenizer(
    squares: Dataset, recipe_of: Make, tmp_path: Path
) -> None:
    first = run_gather(recipe_of(steps=2), [squares], tmp_path / "first")
    init = Weights(path=str(first.artifacts))
    recipe = Train(init=init, objectives=["lm:Lm"], steps=1, lr=0.0, min_lr=0.0, streams=SHORT, log_every=1)
    second = run_gather(recipe, [squares], tmp_path / "second")
    assert outcome(second)[1] == outcome(first)[1]
    changed = Train(
        init=init, model={"dropout": 0.0}, objectives=["lm:Lm"], steps=1, batch_size=4, streams=SHORT
    )
    got = run_gather(changed, [squares], tmp_path / "third")
    assert Blip.load(got.artifacts).config.dropout == 0.0


def test_a_foreign_tokenizer_is_refused(squares: Dataset, recipe_of: Make, tmp_path: Path) -> None:
    first = run_gather(recipe_of(steps=1), [squares], tmp_path / "first")
    Tokenizer.train(["a b c d e f"], 30).save(tmp_path / "other")
    recipe = Train(
        init=Weights(path=str(first.artifacts)),
        tokenizer=Weights(path=str(tmp_path / "other")),
        objectives=["lm:Lm"],
        steps=1,
        streams=SHORT,
    )
    with pytest.raises(
        ValueError,
        match=r"tokenizer: the vocabulary has \d+ tokens, but the model of `init` has \d+; leave out `tokenizer`",
    ):
        run_gather(recipe, [squares], tmp_path / "second")


def test_the_collapse_alarm_in_a_run(squares: Dataset, recipe_of: Make, tmp_path: Path) -> None:
    """A head that says the prior for whatever it sees, and a rate too low to change that."""
    run = run_gather(recipe_of(steps=2), [squares], tmp_path / "start")
    model = Blip.load(run.artifacts)
    assert model.itm_head is not None
    with torch.no_grad():
        model.itm_head.weight.zero_()
        model.itm_head.bias.copy_(torch.log(torch.tensor([2 / 3, 1 / 3])))
    model.save(run.artifacts)
    stuck = {
        "init": Weights(path=str(run.artifacts)),
        "objectives": ["itm:Itm"],
        "steps": 8,
        "lr": 1e-9,
        "min_lr": 0.0,
        "streams": SHORT,
        "log_every": 2,
        "collapse_after": 4,
    }
    lines: list[str] = []
    got = run_gather(Train(**stuck), [squares], tmp_path / "warn", say=lines.append)
    assert [r for r in got.table.to_pylist() if r["name"] == ALARM] == [
        {"step": 4, "name": ALARM, "value": pytest.approx(0.6365, abs=1e-3)}
    ]
    alarm = "COLLAPSE ALARM at step 4: image-text matching (itm)"
    assert len([line for line in lines if line.startswith(alarm)]) == 1
    with pytest.raises(VlpipeError, match="COLLAPSE ALARM at step 4"):
        run_gather(Train(**stuck, on_collapse="fail"), [squares], tmp_path / "fail")


def test_scalars_and_vectors_do_not_decay(squares: Dataset, recipe_of: Make) -> None:
    run = prepare(recipe_of(no_decay=["words"], model={"position": "learned"}), [squares])
    names = {id(p): name for name, p in run.net.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in run.optimiser.param_groups)
    assert [group["weight_decay"] for group in run.optimiser.param_groups] == [0.05, 0.0]
    assert {"model.temp", "model.vision.class_token", "model.text.words.weight"} <= others
    assert {"model.vision.positions", "model.vision.patch.weight"} <= decayed
    assert not any(name.endswith((".bias", "norm.weight", "norm1.weight")) for name in decayed)
    assert not any("teacher" in name for name in decayed | others)
    with pytest.raises(ValueError, match="no_decay: no parameter name contains 'word_embedding'"):
        prepare(recipe_of(no_decay=["word_embedding"]), [squares])


def test_the_loop_is_plain_adamw(squares: Dataset, recipe_of: Make) -> None:
    """Six steps against a loop written down without any of this package's but the batches and the model."""
    objectives = [{"use": "itc:Itc", "weight": 0.5}, "lm:Lm"]
    recipe = recipe_of(
        steps=6,
        lr=2e-3,
        min_lr=1e-4,
        warmup_steps=2,
        clip_norm=0.5,
        objectives=objectives,
        model={"dropout": 0.0},
    )
    ours, theirs = prepare(recipe, [squares]), prepare(recipe, [squares]).net
    rates = [1e-3, 2e-3, 2e-3, 1e-4 + 1.9e-3 * 0.75, 1e-4 + 1.9e-3 * 0.25, 1e-4]  # cos(60), cos(120) degrees
    params = [p for p in theirs.parameters() if p.requires_grad]
    vectors = [p for p in params if p.ndim < 2 or p.numel() == p.shape[-1]]
    decayed = [p for p in params if all(p is not v for v in vectors)]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}], fused=False
    )
    with ours.loader.batches(0) as batches:
        for lr, batch in zip(rates, batches, strict=False):
            fit_module.train_step(ours, [batch])
            values = theirs(batch)
            optimiser.zero_grad()
            itc, lm = (values[name].total / values[name].count for name in ("itc", "lm"))
            (0.5 * itc + lm).backward()
            torch.nn.utils.clip_grad_norm_(params, 0.5)
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
    for (name, one), (_, other) in zip(ours.net.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
