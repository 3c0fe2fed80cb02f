"""Goes through what is to be measured, as long as there is time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

try:
    from tqdm import tqdm
except ImportError:

    def tqdm(items, **options):
        return items


T = TypeVar("T")


def within(seconds: float, items: Iterable[T]) -> Iterator[T]:
    """The items, with a progress bar, until the time is used up.

    From here on, SIGTERM is a KeyboardInterrupt, so that what has been measured is kept.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end = time.perf_counter() + seconds
    for item in tqdm(items, unit="row", disable=None):
        if time.perf_counter() > end:
            return
        yield item
