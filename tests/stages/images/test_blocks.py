"""Memory that is used again, but never while somebody holds it."""

from __future__ import annotations

from vlpipe.stages.images import blocks
from vlpipe.stages.images.blocks import Blocks


def test_a_block_is_given_again_only_when_nobody_holds_it() -> None:
    some = Blocks()
    first, second = some.buffer(1000), some.buffer(1000)
    assert first.address != second.address
    where = first.address
    part = first.slice(10, 5)  # holds the memory on
    del first
    assert some.buffer(900).address not in (where, second.address)
    del part
    assert some.buffer(900).address == where


def test_large_blocks_are_not_kept() -> None:
    some = Blocks()
    assert some.buffer(blocks.MAX_BYTES + 1).size == blocks.MAX_BYTES + 1
    assert some.buffer(0).size == 0
    assert some._kept == []


def test_no_more_blocks_are_kept_than_are_of_use() -> None:
    some = Blocks()
    held = [some.buffer(100) for _ in range(2 * blocks.MAX_BLOCKS)]
    assert len({one.address for one in held}) == len(held)
    assert len(some._kept) == blocks.MAX_BLOCKS
