from __future__ import annotations

import torch

from vlpipe.models.queue import Queue


def filled(size: int, *batches: list[int]) -> tuple[list[float], list[int]]:
    """What a queue holds after batches of these ids; the row of an id is the id itself."""
    queue = Queue(size, 1, ("x",), torch.device("cpu"))
    for ids in batches:
        queue.push([torch.tensor(ids).float()[:, None]], torch.tensor(ids))
    (rows,), kept = queue.rows()
    return rows[:, 0].tolist(), kept.tolist()


def test_only_what_was_pushed_is_there() -> None:
    assert filled(4) == ([], [])
    assert filled(4, [1, 2]) == ([1.0, 2.0], [1, 2])


def test_the_oldest_make_room() -> None:
    assert filled(4, [1, 2, 3], [4, 5]) == ([5.0, 2.0, 3.0, 4.0], [5, 2, 3, 4])


def test_of_more_rows_than_it_holds_the_last_stay() -> None:
    rows, ids = filled(3, [1, 2, 3, 4, 5])
    assert sorted(ids) == [3, 4, 5]
    assert rows == ids
    assert filled(0, [1, 2]) == ([], [])


def test_a_state_goes_on_where_it_was() -> None:
    queue, other = (Queue(3, 1, ("x",), torch.device("cpu")) for _ in range(2))
    queue.push([torch.tensor([[1.0], [2.0]])], torch.tensor([1, 2]))
    other.load_state_dict(queue.state_dict())
    for one in (queue, other):
        one.push([torch.tensor([[3.0], [4.0]])], torch.tensor([3, 4]))
    assert other.rows()[1].tolist() == queue.rows()[1].tolist() == [4, 2, 3]
