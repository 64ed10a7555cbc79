"""How long what is dear may still take."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Budget:
    """Seconds that may still be spent; it is changed by what spends them."""

    seconds: float | None = None  # below 0 once more was spent; None for no limit
    was_short: bool = False  # something was left out because of it

    @property
    def left(self) -> float:
        """Seconds from 0 on; infinity for no limit."""
        return math.inf if self.seconds is None else max(self.seconds, 0.0)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Takes the wall-clock time of a block off, also of one that fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            if self.seconds is not None:
                self.seconds -= time.monotonic() - start
