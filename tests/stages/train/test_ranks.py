"""Two processes over gloo against one process with the whole batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from tests.ranks import run as run_ranks
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.train.gradients import accumulate
from vlpipe.stages.train.run import Run, prepare
from vlpipe.stages.train.train import Train

HERE = Path(__file__).parent
Make = Callable[..., Train]


def in_processes(folder: Path, num: int, jobs: Sequence[tuple[str, Train, Dataset]]) -> list[Path]:
    """Run the jobs in `num` ranks of `worker.py`; returns their folders of work."""
    works = [folder / f"work{k}" for k in range(len(jobs))]
    for work in works:
        work.mkdir(exist_ok=True)
    configs = [
        (what, {"recipe": recipe, "inputs": (data,), "work": str(work)})
        for (what, recipe, data), work in zip(jobs, works, strict=True)
    ]
    (folder / "jobs").write_bytes(pickle.dumps(configs))
    run_ranks(folder, num, [HERE / "worker.py", folder / "jobs"])
    return works


@pytest.fixture
def second_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], dict[str, Any]]:
    """That of `worker.py`."""
    monkeypatch.syspath_prepend(str(HERE))
    import worker

    return worker.second_step


@pytest.mark.slow
def test_two_ranks(
    tmp_path: Path,
    squares: Dataset,
    make_rows: Callable[[], list[dict[str, Any]]],
    recipe_of: Make,
    second_step: Callable[[Run], dict[str, Any]],
) -> None:
    """ITC and LM: the gradient of one process with the whole batch, with 1 or 2 micro-batches per rank. All objectives:
    they train, queues are shared.

    A step of the first is the whole set of 48, so that all see the same rows; texts of 1 to 8 words make the
    ranks' token counts unequal, and in the second step the queue is full.
    """
    rows = make_rows()
    for k, row in enumerate(rows):
        row["texts"][0]["text"] = " ".join(["red", "blue", "top"][k % 3 :] * 3)[: 3 + 4 * (k % 8)]
    uneven = dataset(tmp_path / "uneven", pa.Table.from_pylist(rows, squares.schema))
    itc = {"use": "itc:Itc", "queue_size": 40, "alpha_ramp_epochs": 0}
    exact = {"batch_size": 48, "objectives": [itc, "lm:Lm"], "model": {"dropout": 0.0}}
    everything = recipe_of(steps=3, num_workers=2, accumulate=2, batch_size=16, checkpoint_every=2)
    jobs = [("gradients", recipe_of(num_workers=2, accumulate=k, **exact), uneven) for k in (1, 2)]
    *gradients, fitted = in_processes(tmp_path, 2, [*jobs, ("fit", everything, squares)])
    assert torch.load(gradients[0] / "gradients0.pt")[
        "searches"
    ]  # there is no ITM, whose head gets no gradient

    one = second_step(prepare(recipe_of(**exact), [uneven]))
    for folder in gradients:
        ranks = [torch.load(folder / f"gradients{rank}.pt") for rank in range(2)]
        for rank in ranks:
            assert rank["grads"].keys() == one["grads"].keys()
            for name, grad in one["grads"].items():
                torch.testing.assert_close(rank["grads"][name], grad, rtol=1e-4, atol=1e-7)
        for name in ("itc", "lm", "loss", "temp"):
            mean = sum(float(rank["values"][name]) for rank in ranks) / 2
            assert mean == pytest.approx(float(one["values"][name]), rel=1e-5)
        assert ranks[0]["values"]["lm"] != ranks[1]["values"]["lm"]
    assert float(one["grads"]["model.temp"]) != 0

    assert (fitted / "result/model.safetensors").is_file()
    state = torch.load(fitted / "checkpoints/000000003.pt")
    assert int(state["net"]["objectives.0.queue.num_pushed"]) == 3 * 16
    assert {name for _, name, _ in state["rows"]} >= {"itc", "itm", "itm_accuracy", "lm", "loss"}
    assert len((fitted / "progress.log").read_text().splitlines()) == 3


@pytest.mark.slow
def test_ranks_search_for_parameters_without_gradient_only_where_there_are_some(
    tmp_path: Path, squares: Dataset, recipe_of: Make
) -> None:
    """Three ranks, which may sum in any order: a resumed run ends with the bytes of an uninterrupted one."""
    itc = {"use": "itc:Itc", "queue_size": 48, "alpha_ramp_epochs": 0}
    recipe = recipe_of(
        steps=6, num_workers=3, batch_size=24, checkpoint_every=2, objectives=[itc, "itm:Itm", "lm:Lm"]
    )
    searched, whole, killed = in_processes(
        tmp_path, 3, [("gradients", recipe, squares), ("fit", recipe, squares), ("fit", recipe, squares)]
    )
    assert not torch.load(searched / "gradients0.pt")["searches"]
    last = "checkpoints/000000006.pt"
    wanted = torch.load(whole / last)["net"]
    (killed / last).unlink()
    (tmp_path / "again").mkdir()
    killed.rename(tmp_path / "again/work0")
    (resumed,) = in_processes(tmp_path / "again", 3, [("fit", recipe, squares)])
    got = torch.load(resumed / last)["net"]
    assert got.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(value, got[name])] == []


def test_a_parameter_that_gets_no_gradient_later_is_an_error_before_the_step(
    squares: Dataset, recipe_of: Make
) -> None:
    """Ranks exchange no gradient of such a bucket, and torch says so only in the next step, after this one was made."""

    class Parallel:
        find_unused_parameters = False

        def __call__(self, batch: Any) -> Any:
            return {name: term for name, term in run.net(batch).items() if name != "itm"}

    run = prepare(recipe_of(), [squares])
    run.parallel, run.step = Parallel(), 7
    with (
        run.loader.batches(0) as batches,
        pytest.raises(VlpipeError, match=r"itm.* got no gradient in step 7"),
    ):
        accumulate(run, [next(batches)])
