from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import MapStage
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.caption.generate import Caption
from vlpipe.stages.common.batches import read_images, read_prepared
from vlpipe.stages.common.pixels import COPIES
from vlpipe.stages.common.row import text
from vlpipe.stages.features.embed import Embed
from vlpipe.stages.filter.itm import ItmFilter
from vlpipe.stages.inference import ahead as module
from vlpipe.stages.inference.ahead import Ahead, Room

Rows = Callable[..., pa.Table]


def jpeg(seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    size = int(draw.integers(20, 300)), int(draw.integers(20, 300))
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def mixed(image_rows: Rows) -> pa.Table:
    """70 rows, of which every ninth has no picture."""
    images = [b"<html>" if i % 9 == 4 else jpeg(i) for i in range(70)]
    return image_rows([[text("a red dog", "web")] for _ in images], images)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_pixels_and_rejects_are_those_of_a_loop(mixed: pa.Table, workers: int) -> None:
    wanted_rejects: list[Reject] = []
    wanted = list(read_images(mixed, 32, wanted_rejects))
    rejects: list[Reject] = []
    with Ahead(workers) as ahead:
        found = list(read_images(mixed, 32, rejects, ahead))
    assert [row for row, _ in found] == [row for row, _ in wanted]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(found, wanted, strict=True))
    assert rejects == wanted_rejects
    assert len(rejects) == 8


@pytest.mark.parametrize("kind", ["caption", "itm", "embed", "tiny"])
def test_rows_do_not_depend_on_the_number_of_threads(mixed: pa.Table, weights: Weights, kind: str) -> None:
    stages: dict[str, MapStage] = {
        "caption": Caption(model=weights, batch_size=16, max_length=6),
        "itm": ItmFilter(model=weights, batch_size=16, max_text_length=20),
        "embed": Embed(model=weights, batch_size=16),
        "tiny": Embed(),
    }
    outs = [run_map(replace(stages[kind], decode_workers=n), mixed) for n in (0, 1, 3)]  # type: ignore[call-arg]
    assert all(out.table.equals(outs[0].table) for out in outs)
    assert all(out.rejects == outs[0].rejects for out in outs)


def test_batches_are_made_while_the_caller_works() -> None:
    started = [threading.Event() for _ in range(4)]

    def made() -> Iterator[int]:
        for k in range(4):
            started[k].set()
            yield k

    with Ahead(1) as ahead:
        for k in ahead.batches(made()):
            assert k == 3 or started[k + 1].wait(
                30
            )  # the next one is begun before this one is asked for more


def test_a_bounded_number_of_batches_and_results_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(module, "READY_BYTES", 40)

    def numbers() -> Iterator[int]:
        for k in range(100):
            made.append(k)
            yield k

    with Ahead(2) as ahead:
        found = ahead.map(abs, numbers(), num_bytes=8)
        assert next(found) == 0
        assert len(made) == 5  # 40 bytes are 5 results of 8
    made.clear()
    with Ahead(1) as ahead:
        assert next(ahead.batches(numbers())) == 0
    assert len(made) <= 3  # one that is used, one ready, one that waits to be ready


def test_an_error_comes_after_the_results_before_it() -> None:
    def made() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    with Ahead(1) as ahead:
        values = ahead.batches(made())
        assert next(values) == 1
        with pytest.raises(LookupError, match="no more"):
            next(values)
    with pytest.raises(ZeroDivisionError), Ahead(2) as ahead:
        list(ahead.map(lambda k: 1 // k, [1, 0, 1], 8))


def test_its_threads_end_with_it_when_the_caller_fails(mixed: pa.Table) -> None:
    before = threading.active_count()

    def fail() -> None:
        with Ahead(2) as ahead:
            for _ in ahead.batches(read_images(mixed, 64, [], ahead)):
                raise KeyError("the model")

    with pytest.raises(KeyError):
        fail()
    assert threading.active_count() == before


def test_pictures_are_decoded_within_a_bound_and_a_huge_one_alone() -> None:
    room, at_once, most = Room(100), [0], [0]
    lock = threading.Lock()

    def decode(num_bytes: int) -> None:
        held = room.take(num_bytes)
        with lock:
            at_once[0] += held
            most[0] = max(most[0], at_once[0])
        with lock:
            at_once[0] -= held
        room.give(held)

    with Ahead(8) as ahead:
        list(ahead.map(decode, [30, 60, 1000, 10, 100] * 40, 1))
    assert 0 < most[0] <= 100
    assert room.take(100) == 100  # all was given back


def test_what_is_decoded_is_counted_and_given_back(mixed: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    real = Room.take

    def take(self: Room, num_bytes: int) -> int:
        taken.append(num_bytes)
        return real(self, num_bytes)

    monkeypatch.setattr(Room, "take", take)
    with Ahead(2) as ahead:
        sizes = [i.size for _, i in read_prepared(mixed, lambda image: image, [], ahead)]  # type: ignore[arg-type,return-value]
        assert sorted(taken) == sorted(COPIES * 4 * w * h for w, h in sizes)  # type: ignore[misc]
        assert ahead.room.take(module.WORK_BYTES) == module.WORK_BYTES
