"""What was computed for the last few objects, kept for their next use by any thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class Recently(Generic[V]):
    """Values of the objects last asked for, at most `count` of them.

    Objects are told apart by identity, so a file that is written anew and opened again is another one.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: OrderedDict[int, tuple[object, V]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: object, make: Callable[[], V]) -> V:
        """The value for `key`, made now if it isn't kept; other threads wait for it."""
        with self._lock:
            if id(key) in self._kept:
                self._kept.move_to_end(id(key))
            else:
                self._kept[id(key)] = key, make()  # holds the object, so its id stays its own
                while len(self._kept) > self._count:
                    self._kept.popitem(last=False)
            return self._kept[id(key)][1]
