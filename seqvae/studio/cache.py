"""What is kept for a while, so that nothing is computed twice and memory has a bound.

Knows keys, sizes and which value was asked for last. Refuses to know what the values are.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """Values of a bounded size together; what was asked for longest ago goes first. Safe among threads."""

    def __init__(self, limit: int, forget: Callable[[V], None] = lambda _: None) -> None:
        """`limit` bytes at most, or whatever `size` counts; `forget` is called with each value that goes."""
        self._limit, self._forget = limit, forget
        self._kept: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> V | None:
        """The value, which is thereby the last to go; None where there is none, or none any more."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: str, value: V, size: int = 1) -> V:
        """Keep a value, and return it; one larger than all there is room for goes with the next."""
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
