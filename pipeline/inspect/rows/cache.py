"""A cache of loaded values whose size in bytes is bounded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

NUM_LOCKS = 16


class ByteCache:
    """Keeps the values used last, at most `max_bytes` together. Several threads may use it; a value that two of them
    want is loaded once. A value that is larger than `max_bytes` alone is returned but not kept."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._found: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = tuple(threading.RLock() for _ in range(NUM_LOCKS))

    @property
    def num_bytes(self) -> int:
        with self._lock:
            return sum(size for _, size in self._found.values())

    def get(self, key: Hashable, load: Callable[[], T], size_of: Callable[[T], int]) -> T:
        """Returns the value of `key`. If it is not there, `load` makes it and `size_of` says its bytes."""
        found, value = self._look(key)
        if found:
            return value
        with self._loading[hash(key) % NUM_LOCKS]:
            found, value = self._look(key)
            if found:
                return value
            value = load()
            self._keep(key, value, size_of(value))
            return value

    def _look(self, key: Hashable) -> tuple[bool, Any]:
        with self._lock:
            if key not in self._found:
                return False, None
            self._found.move_to_end(key)
            return True, self._found[key][0]

    def _keep(self, key: Hashable, value: Any, size: int) -> None:
        with self._lock:
            if size > self.max_bytes:
                return
            self._found[key] = (value, size)
            total = sum(each for _, each in self._found.values())
            while total > self.max_bytes:
                _, (_, freed) = self._found.popitem(last=False)
                total -= freed
