"""Linear probe, nearest neighbours and retrieval by images, against plain loops over the features."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from probing_toys import colours, labelled_rows
from scipy.special import softmax

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.common.row import RESULTS, TEXTS, text
from vlpipe.stages.probing.features import Labelled, ProbesImages
from vlpipe.stages.probing.image_retrieval import ImageRetrieval, judged
from vlpipe.stages.probing.knn import NearestNeighbours, neighbours, voted
from vlpipe.stages.probing.linear import LogisticProbe, splits
from vlpipe.stages.probing.logistic import fitted
from vlpipe.stages.train.train import Train

SHARED: dict[str, Any] = {"batch_size": 16, "decode_workers": 0, "precision": "fp32"}


def rows_of(tmp_path: Path, num: int, seed: int, name: str) -> Dataset:
    images, labels = colours(num, seed)
    return dataset(tmp_path / name, labelled_rows(images, labels, name), name)


def features(data: Dataset, output: str = "image_feat") -> tuple[np.ndarray, np.ndarray]:
    (table,) = data.batches(None, ["image"])
    found = load_pixels(table["image"].to_pylist(), 8).mean((2, 3))
    if output == "image_feat":
        found = found / np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32), table["label"].to_numpy()


def figures(stage: ProbesImages, inputs: list[Dataset], tmp_path: Path) -> dict[str, float]:
    out = run_gather(stage, inputs, tmp_path / "out")
    assert out.table.schema == RESULTS
    return {row["name"]: row["value"] for row in out.table.to_pylist()}


def test_the_linear_probe_is_fitted_on_training_and_validation(colour_model: Weights, tmp_path: Path) -> None:
    train, held, test = (rows_of(tmp_path, num, k, f"s{k}") for k, num in enumerate((80, 40, 60)))
    found = figures(LogisticProbe(model=colour_model, **SHARED), [train, held, test], tmp_path)
    (x, y), (hx, hy), (tx, ty) = map(features, (train, held, test))
    best = fitted(np.concatenate([x, hx]), np.concatenate([y, hy]), 3, 10 ** found["linear_penalty"])
    guess = softmax(best.scores(tx), axis=1).argmax(1)
    share = float((guess == ty).mean())
    prior = np.bincount(np.concatenate([y, hy])).argmax()
    assert found["linear"] == pytest.approx(share)
    assert found["linear_se"] == pytest.approx(math.sqrt(share * (1 - share) / 60))
    assert found["linear_prior"] == pytest.approx((ty == prior).mean())
    assert found["linear_mean_per_class"] == pytest.approx(
        np.mean([(guess == ty)[ty == k].mean() for k in range(3)])
    )
    assert share > 0.7


def test_a_fifth_of_the_training_images_chooses_the_penalty() -> None:
    ids = [f"id{k}" for k in range(50)]
    one = Labelled(np.arange(50, dtype=np.float32)[:, None], np.arange(50), ids)
    fit, held, both = splits([one])
    assert (len(fit), len(held)) == (40, 10)
    assert sorted([*fit.ids, *held.ids]) == sorted(ids)
    assert both is one
    mixed = one.rows(np.arange(50)[::-1])
    assert set(splits([mixed])[1].ids) == set(held.ids), "depends on ids, not on places"
    with pytest.raises(VlpipeError, match="4 training images are too few"):
        splits([one.rows(np.arange(4))])


def test_another_output_is_probed(colour_model: Weights, tmp_path: Path) -> None:
    train, test = rows_of(tmp_path, 60, 0, "a"), rows_of(tmp_path, 40, 1, "b")
    by = {
        output: figures(LogisticProbe(model=colour_model, output=output, **SHARED), [train, test], tmp_path)
        for output in ("colour", "maps")
    }
    assert by["colour"] == pytest.approx(by["maps"]), "maps are averaged over their places"
    stage = LogisticProbe(model=colour_model, output="count", **SHARED)
    with pytest.raises(VlpipeError, match="'count' is not a vector per image"):
        figures(stage, [train, test], tmp_path)
    steps = {"mae": Train(model={"use": "mae:Mae"}, objectives=["pixel_mse:PixelMse"], steps=1)}
    assert LogisticProbe(model=Weights(step="mae"), output="nothing").preflight_after(steps) == [
        "output: a Mae has no output 'nothing'"
    ]
    assert LogisticProbe(model=Weights(step="mae"), output="image_tokens").preflight_after(steps) == []


def test_neighbours_vote_as_in_a_loop(colour_model: Weights, tmp_path: Path) -> None:
    known, test = rows_of(tmp_path, 70, 0, "a"), rows_of(tmp_path, 50, 1, "b")
    found = figures(NearestNeighbours(model=colour_model, k=[1, 7], **SHARED), [known, test], tmp_path)
    (x, y), (tx, ty) = features(known), features(test)
    for k in (1, 7):
        right = 0
        for row, truth in zip(tx, ty, strict=True):
            cosines = x @ row
            votes = np.zeros(3)
            for at in np.argsort(-cosines, kind="stable")[:k]:
                votes[y[at]] += math.exp(cosines[at] / 0.07)
            right += votes.argmax() == truth
        assert found[f"knn@{k}"] == pytest.approx(right / 50)
    assert found["knn_prior"] == pytest.approx((ty == np.bincount(y).argmax()).mean())
    with pytest.raises(VlpipeError, match="71 neighbours are wanted, but there are 70 images"):
        figures(NearestNeighbours(model=colour_model, k=[71], **SHARED), [known, test], tmp_path)


def test_near_neighbours_outvote_more_that_are_far() -> None:
    """exp(1 / T) against 2 exp(.5 / T): the near one wins below T = .5 / ln 2."""
    known = np.array([[1, 0], [0.5, 0.75**0.5], [0.5, -(0.75**0.5)]], np.float32)
    ((_, near),) = neighbours(np.array([[3, 0]], np.float32), known, 3)
    labels = np.array([1, 0, 0])
    limit = 0.5 / math.log(2)
    assert voted(near, labels, 3, 2, 0.99 * limit).tolist() == [1]
    assert voted(near, labels, 3, 2, 1.01 * limit).tolist() == [0]


@pytest.mark.parametrize("alone", [True, False])
def test_retrieval_by_images_is_that_of_a_loop(alone: bool) -> None:
    rng = np.random.default_rng(0)
    known = Labelled(
        rng.normal(size=(23, 3)).astype(np.float32), np.r_[rng.integers(0, 4, 22), 10**9], [""] * 23
    )
    new = Labelled(rng.normal(size=(9, 3)).astype(np.float32), rng.integers(2, 6, 9), [""] * 9)
    queries = known if alone else new
    found, num = judged(queries, known, alone, block_values=23 * 4)
    sums = dict.fromkeys(found, 0.0)
    wanted_num = 0
    for at, (row, label) in enumerate(zip(queries.features, queries.labels, strict=True)):
        cosines = known.features @ row / np.linalg.norm(known.features, axis=1)
        order = [k for k in np.argsort(-cosines) if not (alone and k == at)]
        hits = [known.labels[k] == label for k in order]
        total = sum(hits)
        wanted_num += total > 0
        if total:
            sums["i2i_r_precision"] += sum(hits[:total]) / total
            sums["i2i_map@r"] += sum(sum(hits[: k + 1]) / (k + 1) for k in range(total) if hits[k]) / total
            for k in (1, 5, 10):
                sums[f"i2i@{k}"] += any(hits[:k])
    assert num == wanted_num < len(queries)
    assert found == pytest.approx({name: value / num for name, value in sums.items()})


def test_folders_of_classes_that_are_numbered_differently_are_named(
    colour_model: Weights, tmp_path: Path
) -> None:
    """The test set lacks a class, so that its `dog` has the number that `cat` has in the training set."""
    images, _ = colours(6, 0)

    def rows(names: list[str], name: str) -> Dataset:
        labels = [sorted(set(names)).index(one) for one in names]
        table = labelled_rows(images, labels, name)
        table = table.append_column("url", pa.array([f"{one}/{k}.png" for k, one in enumerate(names)]))
        texts = pa.array([[text(one, "human")] for one in names], TEXTS)
        return dataset(tmp_path / name, table.append_column("texts", texts), name)

    train, test = rows(["ant", "cat", "dog"] * 2, "train"), rows(["cat", "dog"] * 3, "test")
    stage = NearestNeighbours(model=colour_model, k=[1], **SHARED)
    with pytest.raises(VlpipeError, match="label 0 is 'ant' in train and 'cat' in test; list all `classes`"):
        figures(stage, [train, test], tmp_path)
    assert figures(stage, [train, rows(["ant", "cat", "dog"] * 2, "whole")], tmp_path)["knn@1"] == 1


@pytest.mark.parametrize("alone", [True, False])
def test_equal_cosines_count_as_wrong(alone: bool) -> None:
    """12 images of class 0, then 12 of class 1, all embedded alike: the first ones would find their own class each time."""
    rows = Labelled(np.ones((24, 3), np.float32), np.arange(24) // 12, [""] * 24)
    found, num = judged(rows, rows, alone)
    assert num == 24
    assert found == dict.fromkeys(found, 0)


def test_an_image_does_not_find_itself(colour_model: Weights, tmp_path: Path) -> None:
    """Also where 40 others are equal to it."""
    images, _ = colours(1, 0)
    table = labelled_rows(images * 40, [k // 2 for k in range(40)])
    found = figures(ImageRetrieval(model=colour_model, **SHARED), [dataset(tmp_path / "x", table)], tmp_path)
    assert found["i2i@1"] == 0, "all others are as near as its partner"
    lonely = dataset(tmp_path / "y", labelled_rows(*colours(3, 0))).table()
    assert lonely.num_rows == 3
    single = dataset(tmp_path / "z", labelled_rows(images * 3, [0, 1, 2]))
    with pytest.raises(VlpipeError, match="no query has another image of its label"):
        figures(ImageRetrieval(model=colour_model, **SHARED), [single], tmp_path)


def test_what_cannot_be_probed_is_said(colour_model: Weights, tmp_path: Path) -> None:
    stage = LogisticProbe(model=colour_model, **SHARED)
    images, labels = colours(20, 0)
    with pytest.raises(SchemaError, match=r"probing\.linear reads column 'label'"):
        stage.schema(labelled_rows(images, labels).drop_columns("label").schema)
    one = dataset(tmp_path / "a", labelled_rows(images, labels))
    with pytest.raises(VlpipeError, match="wanted the inputs training, test"):
        run_gather(stage, [one], tmp_path)
    for wrong, message in (([None] * 20, "no readable image with a label"), ([-1] * 20, "a label -1")):
        bad = dataset(tmp_path / "b", labelled_rows(images, wrong))
        with pytest.raises(VlpipeError, match=message):
            run_gather(stage, [one, bad], tmp_path)
    small = LogisticProbe(model=colour_model, memory_bytes=100, **SHARED)
    with pytest.raises(VlpipeError, match="need more than memory_bytes = 100"):
        run_gather(small, [one, one], tmp_path)
