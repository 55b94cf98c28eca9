from __future__ import annotations

import pickle

import torch

from vlpipe.models.interface.batch import Batch, Stream


def a_batch() -> Batch:
    text = Stream(
        torch.arange(6).view(3, 2),
        torch.tensor([[True, False], [True, True], [True, True]]),
        extra={"prompt": torch.tensor([1, 2, 3])},
        target={"ids": torch.tensor([[4, 5], [6, 7], [8, 9]])},
    )
    image = Stream(torch.zeros(3, 1))
    return Batch(streams={"text": text, "image": image}, same=torch.arange(3), views={"v": {"image": image}})


def test_rows_of_a_stream_are_rows_of_all_its_tensors() -> None:
    text = a_batch().stream("text").rows(torch.tensor([2, 0]))
    assert text.data.tolist() == [[4, 5], [0, 1]]
    assert text.mask is not None
    assert text.mask.tolist() == [[True, True], [True, False]]
    assert text.extra["prompt"].tolist() == [3, 1]
    assert text.target["ids"].tolist() == [[8, 9], [4, 5]]
    assert len(text) == 2


def test_a_change_reaches_views_and_shared_streams_stay_shared() -> None:
    batch = a_batch().map(lambda value: value[:2])
    assert len(batch) == 2
    assert batch.view("v").stream("image") is batch.stream("image")
    assert {len(stream) for stream in batch.streams.values()} == {2}


def test_a_batch_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(a_batch()))
    assert torch.equal(again.stream("text").data, a_batch().stream("text").data)
    assert again.stream("image").extra == {}
