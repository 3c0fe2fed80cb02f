"""Goes through what is to be measured, as long as there is time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from typing import TypeVar

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None


T = TypeVar("T")


def within(
    seconds: float, items: Collection[T], cost: Callable[[T], float] = lambda item: 1.0
) -> Iterator[T]:
    """The items, with a progress bar, until the time is used up.

    `cost` is about how long an item takes, in any unit: the bar's remaining time goes by it. From here on,
    SIGTERM is a KeyboardInterrupt, so that what has been measured is kept.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end = time.perf_counter() + seconds
    form = "{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]{postfix}"
    with tqdm(total=sum(map(cost, items)), bar_format=form, disable=None) if tqdm else nullcontext() as bar:
        for count, item in enumerate(items, 1):
            if time.perf_counter() > end:
                return
            yield item
            if bar is not None:
                bar.set_postfix_str(f"{count} of {len(items)}", refresh=False)
                bar.update(cost(item))
