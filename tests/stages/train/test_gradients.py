"""K micro-batches give the losses and the gradient of one batch, contrastive losses included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED
from vlpipe.stages.train.build import Net
from vlpipe.stages.train.gradients import accumulate
from vlpipe.stages.train.run import Run, prepare
from vlpipe.stages.train.train import Train

Make = Callable[..., Train]
ITC = {"use": "itc:Itc", "queue_size": 0, "alpha_ramp_epochs": 0}
QUEUED = {**ITC, "queue_size": 40}  # full after two steps of 24
MASKED = {"masked": [{"use": "mask_text:MaskText", "rate": 0.3}]}


@pytest.fixture
def uneven(tmp_path: Path, make_rows: Callable[[], list[dict[str, Any]]]) -> Dataset:
    """48 pictures with texts of 1 to 8 words, so that micro-batches differ in tokens."""
    rows = make_rows()
    for k, row in enumerate(rows):
        words = row["id"].split()[:-1] * 3
        row["texts"][0]["text"] = " ".join(words[: 1 + k % 8])
    return dataset(tmp_path, pa.Table.from_pylist(rows, pa.schema([*LISTED, *IMAGE_FIELDS])))


def third_step(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of the third step; weights stay as they were made here, apart from the teacher's."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the teacher is not the student
        for p in run.net.model.parameters():
            if p.ndim:
                p.add_(0.05 * torch.randn(p.shape, generator=noise))
    with run.loader.batches(0) as batches:
        for _ in range(3):
            run.optimiser.zero_grad()
            values = accumulate(run, list(islice(batches, run.recipe.accumulate)))
    return values, {name: p.grad for name, p in run.net.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objectives", "views", "names"),
    [
        ([ITC], {}, ["itc"]),
        ([QUEUED], {}, ["itc"]),
        (["lm:Lm"], {}, ["lm"]),
        ([QUEUED, {"use": "itm:Itm", "weight": 0}, "lm:Lm"], {}, ["itc", "lm"]),  # ITM is of scope "rank"
        (["lm:Lm", {**QUEUED, "weight": 0.5, "view": "masked"}], MASKED, ["itc", "lm"]),
    ],
    ids=["itc", "itc with queue", "lm", "all", "itc of a view"],
)
def test_micro_batches_are_one_batch(
    uneven: Dataset, recipe_of: Make, objectives: list[Any], views: dict[str, Any], names: list[str]
) -> None:
    """Values to 1e-6 and each parameter's gradient to 1e-6 of the whole gradient's norm; the temperature's to 1e-5."""
    fixed: dict[str, Any] = {"batch_size": 24, "model": {"dropout": 0.0}, "views": views}
    recipes = {k: recipe_of(accumulate=k, objectives=objectives, **fixed) for k in (1, 2, 4)}
    found = {k: third_step(prepare(recipe, [uneven])) for k, recipe in recipes.items()}
    values, grads = found[1]
    size = torch.stack([grad.norm() for grad in grads.values()]).norm()
    for k in (2, 4):
        assert found[k][1].keys() >= grads.keys()
        for name in names:
            assert float(found[k][0][name]) == pytest.approx(float(values[name]), rel=1e-6)
        for name, grad in found[k][1].items():
            difference = grad - grads.get(name, torch.zeros_like(grad))
            assert difference.norm() <= 1e-6 * size, f"{name}, {k} micro-batches"
        if "itc" in names:
            temp, wanted = (float(g["model.temp"]) for g in (found[k][1], grads))
            assert temp == pytest.approx(wanted, rel=1e-5)
            assert abs(wanted) > 1e-3 * size


def test_features_of_both_passes_have_the_same_dropout(uneven: Dataset, recipe_of: Make) -> None:
    objectives = ["lm:Lm", {"use": "itm:Itm", "negatives": "momentum"}, ITC]
    recipe = recipe_of(batch_size=24, accumulate=3, objectives=objectives, model={"dropout": 0.5})
    run = prepare(recipe, [uneven])
    made: list[Outputs] = []
    outputs = run.net.outputs

    def recorded(batch: Batch) -> Outputs:
        made.append(outputs(batch))
        return made[-1]

    run.net.outputs = recorded
    with run.loader.batches(0) as batches:
        accumulate(run, list(islice(batches, 3)))
    assert len(made) == 6
    for first, second in zip(made[:3], made[3:], strict=True):
        assert torch.equal(first.text_feat, second.text_feat)
        assert torch.equal(first.image_feat, second.image_feat)
    assert not torch.equal(made[0].text_feat[0], outputs(made[0].batch).text_feat[0])


@pytest.mark.parametrize("objectives", [[ITC], [{"use": "itm:Itm", "negatives": "momentum"}]])
def test_the_teacher_follows_once_per_step(uneven: Dataset, recipe_of: Make, objectives: list[Any]) -> None:
    """Whether the step's features are cached (ITC) or not (ITM), and only in training."""
    recipe = recipe_of(
        batch_size=24, accumulate=3, objectives=objectives, teachers={"ema": {"momentum": 0.9}}
    )
    run = prepare(recipe, [uneven])
    bias = run.net.teachers["ema"].copy.text.norm.bias
    run.net.model.text.norm.bias.data.add_(1)
    with run.loader.batches(0) as batches:
        for wanted in (0.1, 0.19):
            accumulate(run, list(islice(batches, 3)))
            torch.testing.assert_close(bias, torch.full_like(bias, wanted))
        run.net.eval()
        accumulate(run, list(islice(batches, 3)))
    torch.testing.assert_close(bias, torch.full_like(bias, 0.19))


def test_a_queue_takes_the_rows_of_a_step_once(uneven: Dataset, recipe_of: Make) -> None:
    run = prepare(recipe_of(batch_size=24, accumulate=3, objectives=[QUEUED]), [uneven])
    with run.loader.batches(0) as batches:
        micro = list(islice(batches, 3))
        accumulate(run, micro)
    queue = run.net.objectives[0].queue
    assert int(queue.num_pushed) == 24
    assert queue.rows()[1].tolist() == torch.cat([batch.same for batch in micro]).tolist()


def test_counts_known_before_the_forward_pass_are_its_counts(uneven: Dataset, recipe_of: Make) -> None:
    run = prepare(recipe_of(batch_size=24), [uneven])
    with run.loader.batches(0) as batches:
        batch = next(batches)
    counts, values = run.net.counts(batch), run.net(batch)
    assert set(counts) == {"itc", "itm", "lm"}
    assert {name: float(values[name].count) for name in counts} == {n: float(c) for n, c in counts.items()}
    assert counts["itc"] == 24
    assert counts["itm"] == 72


class Share(Objective):
    """A loss whose count is a share of the rows, as LXMERT's of regions, and one that counts nothing."""

    LOSSES = ("share", "nothing")

    def forward(self, out: Outputs) -> Mapping[str, Term | Tensor]:
        bulk = out.model.text.words.weight.square().sum()
        return {"share": Term(0.01 * len(out) * bulk, 0.01 * len(out)), "nothing": Term(0 * bulk, 0.0)}


def test_a_count_below_one_is_divided_by(recipe_of: Make, uneven: Dataset) -> None:
    run = prepare(recipe_of(batch_size=24), [uneven])
    run.net = run.parallel = Net(run.net.model, [(1.0, "", Share())])
    with run.loader.batches(0) as batches:
        values = accumulate(run, [next(batches)])
    bulk = run.net.model.text.words.weight.detach().square().sum()
    torch.testing.assert_close(values["share"], bulk.double())
    assert float(values["nothing"]) == 0


class Bulk(Objective):
    """A loss that is no mean over rows, and a diagnostic of rows."""

    LOSSES = ("bulk",)

    def forward(self, out: Outputs) -> Mapping[str, Term | Tensor]:
        bulk = out.model.text.words.weight.square().sum()
        return {"bulk": bulk, "row": Term(out.batch.same.double().sum(), len(out))}


@pytest.mark.parametrize("num_micro", [1, 3])
@pytest.mark.parametrize("others", [[], [ITC]], ids=["alone", "beside itc"])
def test_a_scalar_loss_counts_once_with_its_weight(
    uneven: Dataset, recipe_of: Make, num_micro: int, others: list[Any]
) -> None:
    run = prepare(recipe_of(batch_size=24, accumulate=num_micro, objectives=[*others, "lm:Lm"]), [uneven])
    entries = [(0.0, "", o) for o in run.net.all_objectives()]
    emas = dict(run.net.teachers.items())
    run.net = run.parallel = Net(run.net.model, [*entries, (0.5, "", Bulk())], emas)
    with run.loader.batches(0) as batches:
        micro = list(islice(batches, num_micro))
        values = accumulate(run, micro)
    weight = run.net.model.text.words.weight
    assert float(values["bulk"]) == pytest.approx(float(weight.detach().square().sum()), rel=1e-6)
    assert float(values["loss"]) == pytest.approx(0.5 * float(values["bulk"]), rel=1e-6)
    torch.testing.assert_close(weight.grad, weight.detach())
    same = torch.cat([batch.same for batch in micro]).double()
    assert float(values["row"]) == pytest.approx(float(same.mean()), rel=1e-12)


def test_a_temperature_is_within_its_bounds_from_the_first_step(uneven: Dataset, recipe_of: Make) -> None:
    run = prepare(recipe_of(objectives=[{**ITC, "temp": 9.0}]), [uneven])
    assert float(run.net.model.temp) == 0.5
