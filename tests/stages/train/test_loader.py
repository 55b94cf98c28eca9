from __future__ import annotations

import io
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models.interface.batch import Batch, Step
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.pixels import load_pixels, resized_part
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.loading.augment import Augmentation, augmented
from vlpipe.stages.loading.batches.ahead import ahead
from vlpipe.stages.loading.rows import int64_id
from vlpipe.stages.train.build import build_makers, build_model, build_views
from vlpipe.stages.train.loader import Loader
from vlpipe.stages.train.train import Train

SCHEMA = pa.schema([*LISTED, *IMAGE_FIELDS])
Make = Callable[..., Train]
Rows = list[dict[str, Any]]


def loader(recipe: Train, *inputs: Dataset) -> Loader:
    assert recipe.tokenizer is not None
    tokenizer = Tokenizer.load(recipe.tokenizer.path)
    makers = build_makers(recipe, build_model(recipe, tokenizer), tokenizer)
    return Loader(inputs, recipe, tokenizer, makers, build_views(recipe, makers))


def batches(
    recipe: Train, data: Dataset, num: int, step: int = 0, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    with loader(recipe, data).batches(step, rank, world_size) as found:
        return list(islice(found, num))


def leaves(batch: Batch) -> dict[str, Any]:
    """All that is in a batch, by name."""
    found: dict[str, Any] = {"same": batch.same, "step": batch.step}
    for view, streams in {"": batch.streams, **batch.views}.items():
        for name, stream in streams.items():
            parts = {"data": stream.data, "mask": stream.mask, **stream.extra}
            parts |= {f"target/{key}": value for key, value in stream.target.items()}
            found |= {f"{view}:{name}/{key}": value for key, value in parts.items()}
    return found


def equal(one: list[Batch], other: list[Batch]) -> bool:
    pairs = [(leaves(a), leaves(b)) for a, b in zip(one, other, strict=False)]
    return len(one) == len(other) and all(
        a.keys() == b.keys()
        and all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
        for a, b in pairs
    )


def ids_of(batch: Batch) -> list[list[int]]:
    """Token ids of each text, padding included."""
    return batch.stream("text").data.tolist()


def augmenting(**augment: Any) -> dict[str, Any]:
    return {"text": {"max_length": 12}, "image": {"augment": augment}}


def test_a_batch_is_pictures_with_their_own_texts(squares: Dataset, recipe_of: Make) -> None:
    rows = squares.table(["id", "texts"]).to_pylist()
    images = [b for t in squares.batches(["id"], ["image"]) for b in t["image"].to_pylist()]
    by_id = {
        int64_id(row["id"]): (row["texts"][0]["text"], image) for row, image in zip(rows, images, strict=True)
    }
    recipe = recipe_of()
    (batch,) = batches(recipe, squares, 1)
    tokenizer = Tokenizer.load(recipe.tokenizer.path)  # type: ignore[union-attr]
    found = [by_id[i] for i in batch.same.tolist()]
    assert [tokenizer.decode(ids) for ids in ids_of(batch)] == [t for t, _ in found]
    np.testing.assert_array_equal(
        batch.stream("image").data.numpy(), load_pixels([image for _, image in found], 16)
    )


def test_an_epoch_has_every_pair_once_and_batches_run_on(squares: Dataset, recipe_of: Make) -> None:
    """48 pairs in batches of 20: 2.4 batches per epoch; 12 batches are 5 epochs."""
    found = batches(recipe_of(batch_size=20), squares, 12)
    assert {len(b.same) for b in found} == {20}
    assert set(Counter(i for b in found for i in b.same.tolist()).values()) == {5}
    assert [b.step for b in found[:3]] == [Step(0), Step(1, 0, 20 / 48), Step(2, 0, 40 / 48)]


def test_the_step_is_the_state(squares: Dataset, recipe_of: Make) -> None:
    recipe = recipe_of(batch_size=20, accumulate=2, streams=augmenting(crop_scale=[0.5, 1], flip=True))
    assert equal(batches(recipe, squares, 8, step=3), batches(recipe, squares, 14)[6:])


VIEWS = {
    "masked": [{"use": "mask_text:MaskText", "whole_words": True}],
    "half": [{"use": "mismatch:Mismatch", "law": "half"}],
    "each": ["mismatch:Mismatch", "mask_text:MaskText"],
    "patches": [{"use": "mask_patches:MaskPatches", "patch": 8}],
}


@pytest.mark.parametrize("view", VIEWS)
def test_the_step_is_the_state_of_views_too(squares: Dataset, recipe_of: Make, view: str) -> None:
    recipe = recipe_of(batch_size=20, accumulate=2, views={view: VIEWS[view]})
    assert equal(batches(recipe, squares, 4, step=3), batches(recipe, squares, 10)[6:])
    assert equal(
        batches(recipe, squares, 4),
        batches(recipe_of(batch_size=20, accumulate=2, views=recipe.views, loader_threads=3), squares, 4),
    )
    assert not equal(
        batches(recipe, squares, 4),
        batches(recipe_of(batch_size=20, accumulate=2, views=recipe.views, seed=1), squares, 4),
    )


def test_a_view_holds_what_its_corruptors_change_and_nothing_else(squares: Dataset, recipe_of: Make) -> None:
    (plain,) = batches(recipe_of(), squares, 1)
    (batch,) = batches(recipe_of(views=VIEWS), squares, 1)
    assert {view: set(streams) for view, streams in batch.views.items()} == {
        "masked": {"text"},
        "half": {"text"},
        "each": {"text"},
        "patches": {"image"},
    }
    assert all(torch.equal(batch.stream(name).data, plain.stream(name).data) for name in ("image", "text"))
    assert set(batch.view("each").stream("text").target) == {"match", "ids"}
    assert batch.view("half").stream("text").target["match"].sum() == 8
    assert batch.view("patches").stream("image").extra["keep"].shape == (16, 1)


def test_threads_and_memory_change_nothing(squares: Dataset, recipe_of: Make) -> None:
    small = {"streams": augmenting(crop_scale=[0.2, 1], randaugment=[2, 5]), "shuffle_window": 10}
    one = batches(recipe_of(loader_threads=1, **small), squares, 9)
    assert equal(one, batches(recipe_of(loader_threads=3, cache_bytes=0, **small), squares, 9))
    assert not equal(one, batches(recipe_of(seed=1, **small), squares, 9))


def padding(found: list[Batch]) -> float:
    masks = [b.stream("text").mask for b in found]
    return 1 - sum(int(m.sum()) for m in masks if m is not None) / sum(
        m.numel() for m in masks if m is not None
    )


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("settings", [{}, {"shuffle_window": 20}, {"accumulate": 2, "texts": "images"}])
def test_batches_of_similar_length_have_every_sample_once(
    tmp_path: Path, make_rows: Callable[[], Rows], recipe_of: Make, settings: dict[str, Any], balance: bool
) -> None:
    """After a resume, too, and on two ranks; and less of them is padding."""
    rows = make_rows()
    for k, row in enumerate(rows):
        row["texts"][0]["text"] = " ".join((row["id"].split()[:-1] * 4)[: 1 + 5 * k % 11])
    data = dataset(tmp_path, pa.Table.from_pylist(rows, SCHEMA), shard_rows=10)
    limits = {"batch_size": 8, "streams": {"text": {"max_length": 16}}, **settings}
    plain, grouped = recipe_of(**limits), recipe_of(group_by_length=True, **limits)
    if balance:
        bert = {"use": "bert:Bert", "width": 16, "layers": 1, "heads": 2, "max_text_length": 16}
        plain, grouped = replace(plain, model=bert), replace(grouped, model=bert, balance_tokens=True)
    one_epoch = 6 * plain.accumulate
    found = batches(grouped, data, 2 * one_epoch)
    assert set(Counter(i for b in found[:one_epoch] for i in b.same.tolist()).values()) == {1}
    for step in (1, 4, 7):
        assert equal(batches(grouped, data, 3, step=step), found[step * plain.accumulate :][:3])
    ranks = [batches(grouped, data, one_epoch, rank=rank, world_size=2) for rank in range(2)]
    assert set(Counter(i for r in ranks for b in r for i in b.same.tolist()).values()) == {1}
    most = 0.75 if balance else 0.7  # of 20 samples, few batches can be balanced
    assert padding(found) < most * padding(batches(plain, data, 2 * one_epoch))


PROCESSES = [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("num", PROCESSES)
def test_processes_change_nothing(squares: Dataset, recipe_of: Make, num: int) -> None:
    """Neither samples nor pixels, from the start and after a resume, with views and augmentation."""
    settings: dict[str, Any] = {
        "streams": augmenting(crop_scale=[0.2, 1], flip=True, randaugment=[2, 5]),
        "views": VIEWS,
        "batch_size": 20,
        "accumulate": 2,
        "shuffle_window": 10,
    }
    threads, processes = recipe_of(**settings), recipe_of(loader_processes=num, **settings)
    expected = batches(threads, squares, 14)
    assert equal(batches(processes, squares, 14), expected)
    assert equal(batches(processes, squares, 8, step=3), expected[6:])


def test_a_process_of_the_loader_that_is_killed_is_an_error(squares: Dataset, recipe_of: Make) -> None:
    with loader(recipe_of(loader_processes=1), squares).batches(0) as found:
        next(found)
        (process,) = multiprocessing.active_children()
        process.kill()
        with pytest.raises(
            VlpipeError, match=r"a process of the loader was killed, .* lower loader_processes"
        ):
            list(islice(found, 20))


def held(recipe: Train, data: Dataset, pids: Path) -> None:
    """Writes the ids of the loader's processes, and waits."""
    with loader(recipe, data).batches(0) as found:
        next(found)
        pids.with_suffix(".part").write_text(" ".join(str(p.pid) for p in multiprocessing.active_children()))
        pids.with_suffix(".part").rename(pids)
        time.sleep(60)


@pytest.mark.slow
def test_processes_of_a_killed_training_end(squares: Dataset, recipe_of: Make, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    training = multiprocessing.get_context("spawn").Process(
        target=held, args=(recipe_of(loader_processes=2), squares, pids)
    )
    training.start()
    for _ in range(600):
        if pids.exists():
            break
        time.sleep(0.1)
    training.kill()
    training.join()
    processes = [Path("/proc", pid) for pid in pids.read_text().split()]
    assert len(processes) == 2
    for _ in range(100):
        if not any(map(is_running, processes)):
            return
        time.sleep(0.1)
    raise AssertionError("processes of the loader live on")


def is_running(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_loader_says_how_fast_it_can_be(squares: Dataset, recipe_of: Make) -> None:
    made = loader(recipe_of(), squares)
    assert made.making.samples_per_s == 0
    with made.batches(0) as found:
        next(found)
    assert 10 < made.making.samples_per_s < 1e6


def test_two_ranks_share_the_epoch(squares: Dataset, recipe_of: Make) -> None:
    recipe = recipe_of(batch_size=16, num_workers=2)
    ranks = [batches(recipe, squares, 3, rank=rank, world_size=2) for rank in range(2)]
    ids = [i for found in ranks for b in found for i in b.same.tolist()]
    assert {len(b.same) for found in ranks for b in found} == {8}
    assert len(ids) == len(set(ids)) == 48


def test_images_draw_one_of_their_texts_anew_in_each_epoch(
    tmp_path: Path, make_rows: Callable[[], Rows], recipe_of: Make
) -> None:
    row = make_rows()[0]
    row["texts"] = [text(word, "web") for word in ("red", "green", "blue")]
    data = dataset(tmp_path, pa.Table.from_pylist([row], SCHEMA))
    recipe = recipe_of(texts="images", batch_size=1)
    assert loader(recipe, data).samples_per_epoch == 1
    assert loader(recipe_of(texts="pairs"), data).samples_per_epoch == 3
    drawn = Counter(tuple(ids_of(b)[0]) for b in batches(recipe, data, 90))
    assert len(drawn) == 3
    assert min(drawn.values()) > 15


def test_mix_goes_by_step_name(squares: Dataset, recipe_of: Make) -> None:
    human = Dataset(squares.store, "human@2", squares.schema, squares.shards)
    assert loader(recipe_of(mix={"human": 2.0}), squares, human).samples_per_epoch == 3 * 48
    with pytest.raises(
        VlpipeError, match=r"mix: 'humans' is not an input of this step; did you mean 'human'\?"
    ):
        loader(recipe_of(mix={"humans": 2.0}), squares, human)


def test_the_prompt_is_put_before_every_text_and_given(squares: Dataset, recipe_of: Make) -> None:
    """[CLS] and the prompt's tokens are given; they are no targets of LM."""
    recipe = recipe_of(streams={"text": {"max_length": 12, "prompt": "a blue "}})
    (batch,) = batches(recipe, squares, 1)
    tokenizer = Tokenizer.load(recipe.tokenizer.path)  # type: ignore[union-attr]
    assert all(tokenizer.decode(ids).startswith("a blue a ") for ids in ids_of(batch))
    assert len(tokenizer.ids("a blue")) == 2
    assert batch.stream("text").extra["prompt"].tolist() == [3] * 16
    (plain,) = batches(recipe_of(), squares, 1)
    assert not plain.stream("text").extra


def test_texts_are_padded_to_the_longest_and_cut_without_an_end(squares: Dataset, recipe_of: Make) -> None:
    (batch,) = batches(recipe_of(), squares, 1)
    tokenizer = Tokenizer.load(recipe_of().tokenizer.path)  # type: ignore[union-attr]
    text = batch.stream("text")
    assert text.mask is not None
    assert text.mask.sum(1).max() == text.data.shape[1]
    assert torch.equal(text.mask, text.data != tokenizer.pad)
    assert (text.data == tokenizer.sep).sum(1).tolist() == [1] * 16
    (cut,) = batches(recipe_of(streams={"text": {"max_length": 4}}), squares, 1)
    assert cut.stream("text").data.shape == (16, 4)
    assert not (cut.stream("text").data == tokenizer.sep).any()


@pytest.mark.parametrize("num", [0, 1])
def test_a_broken_image_names_its_row(
    tmp_path: Path, make_rows: Callable[[], Rows], recipe_of: Make, num: int
) -> None:
    rows = make_rows()
    rows[5]["image"] = rows[5]["image"][:60]
    data = dataset(tmp_path, pa.Table.from_pylist(rows, SCHEMA))
    with pytest.raises(VlpipeError, match=f"image of row {rows[5]['id']} cannot be decoded") as raised:
        batches(recipe_of(loader_processes=num), data, 3)
    assert "Traceback" not in str(raised.value)


def parts_of(image: Image.Image) -> Any:
    """The first argument of `augmented` for a decoded image."""
    return lambda part, size: resized_part(image, part(*image.size), size)


def test_no_picture_is_mirrored_whose_text_names_a_side() -> None:
    image = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    spec = Augmentation(flip=True)

    def num_flipped(words: str) -> int:
        made = (augmented(parts_of(image), spec, 16, words, np.random.default_rng(k)) for k in range(100))
        return sum(list(one.getdata()) != list(image.getdata()) for one in made)

    assert num_flipped("a dog on the Left, running") == 0
    assert num_flipped("right") == 0
    assert 30 < num_flipped("a dog, bright and leftover") < 70


def test_augmentation_keeps_the_size() -> None:
    image = Image.open(io.BytesIO(_png(40, 20)))
    spec = Augmentation(crop_scale=(0.2, 1.0), flip=True, randaugment=(2, 5.0))
    assert augmented(parts_of(image), spec, 16, "", np.random.default_rng(0)).size == (16, 16)


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (9, 9, 9)).save(file, "PNG")
    return file.getvalue()


def test_ahead_passes_errors_on_and_stops() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for k in range(1000):
            made.append(k)
            if k == 3:
                raise KeyError("three")
            yield k

    with ahead(source(), 2) as items:
        assert list(islice(items, 3)) == [0, 1, 2]
        with pytest.raises(KeyError, match="three"):
            next(items)

    made.clear()
    with ahead((made.append(k) or k for k in range(1000)), 2) as items:  # type: ignore[func-returns-value]
        assert next(items) == 0
    assert len(made) <= 5


def test_texts_occur_as_often_as_the_column_copies_says(
    squares: Dataset, recipe_of: Make, tmp_path: Path
) -> None:
    table = squares.table(["id", "texts", "sha256"])
    images = pa.concat_tables(squares.batches(["id"], ["image"]))["image"]
    table = table.append_column(SCHEMA.field("image"), images)
    copies = [[(0, 1, 3)[i % 3]] * len(ts) for i, ts in enumerate(table["texts"].to_pylist())]
    table = table.append_column("copies", pa.array(copies, pa.list_(pa.int32())))
    data = dataset(tmp_path, table)
    recipe = recipe_of(batch_size=16, copies="copies")
    wanted = {
        int64_id(sha256 or id_): (0, 1, 3)[i % 3]
        for i, (id_, sha256) in enumerate(zip(*(table[n].to_pylist() for n in ("id", "sha256")), strict=True))
    }
    assert loader(recipe, data).samples_per_epoch == sum(wanted.values()) == 64
    seen = Counter(i for batch in batches(recipe, data, 4) for i in batch.same.tolist())
    assert seen == Counter({i: num for i, num in wanted.items() if num})
    with pytest.raises(VlpipeError, match="copies: no input of this step has a column 'copies'"):
        loader(recipe, squares)
