"""A cache of bounded size that drops the least recently used values.

Scope: keys, sizes and the order of use. Out of scope: the values.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """Values of bounded total size; the least recently used go first. Safe for threads."""

    def __init__(self, limit: int, forget: Callable[[V], None] = lambda _: None) -> None:
        """`limit` is the largest total size, in the unit of `size`; `forget` is called with each dropped value."""
        self._limit, self._forget = limit, forget
        self._kept: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> V | None:
        """The value, now the most recently used; None where it is not kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: str, value: V, size: int = 1) -> V:
        """Keep a value, and return it; a value larger than the limit is dropped with the next `put`."""
        with self._lock:
            if key in self._kept:
                self._size -= self._kept.pop(key)[1]
            gone = []
            while self._kept and self._size + size > self._limit:
                old, freed = self._kept.popitem(last=False)[1]
                self._size -= freed
                gone.append(old)
            self._kept[key] = value, size
            self._size += size
        for old in gone:
            self._forget(old)
        return value

    def __len__(self) -> int:
        return len(self._kept)
