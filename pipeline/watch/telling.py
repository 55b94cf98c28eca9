"""Several watchers as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, Protocol

from vlpipe.pipeline.engine.executor import Watcher


class Telling(AbstractContextManager[Any], Protocol):
    """A context manager with a watcher that is valid inside of it."""

    watcher: Watcher


def all_of(watchers: Sequence[Watcher]) -> Watcher:
    """Returns a watcher that calls each of these in turn."""

    def each(name: str) -> Callable[..., None]:
        called = [getattr(one, name) for one in watchers]

        def call(*args: Any) -> None:
            for one in called:
                one(*args)

        return call

    return Watcher(**{one.name: each(one.name) for one in fields(Watcher)})
