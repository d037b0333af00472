"""The mandatory estimate: persistence and its usual error, at once, in plain Python."""

from collections.abc import Mapping, Sequence
from math import isfinite, isnan, nan

import numpy as np

LEVEL = -1  # of an answer without the model
SLOW = 0.002  # rate of the running deviation
ARRAYS = "first", "last", "deviation"


class Mandatory:
    """What the estimate remembers of a stream. Plain lists: they beat NumPy for a few channels."""

    def __init__(self, channels: int):
        self.count = 0
        self.first = [nan] * channels
        self.last = [nan] * channels
        self.deviation = [0.0] * channels  # running mean square of the differences
        # What is taken off the values so that float32 is exact enough: the first, 0 before it. A
        # list that was handed out does not change.
        self.anchor = [0.0] * channels

    def observe(self, values: Sequence[float], measured: Sequence[bool]) -> float:
        """Take in a sample; return its difference to the last one, in usual ones.

        The largest of the channels counts; 0 while none is known.
        """
        surprise, rate = 0.0, max(1.0 / (self.count + 1), SLOW)
        for c, x in enumerate(values):
            if not isfinite(x):
                continue
            if isnan(self.first[c]):
                self.first[c] = self.last[c] = x
                self._take_off()
            if measured[c]:
                off, usual = abs(x - self.last[c]), self.deviation[c] ** 0.5
                if usual > 0:
                    surprise = max(surprise, off / usual)
                    # An absurd one counts as ten usual ones, or it would hide what follows.
                    off = min(off, 10 * usual)
                self.deviation[c] += rate * (off * off - self.deviation[c])
            self.last[c] = x
        self.count += 1
        return min(surprise, 1e6)

    def _take_off(self) -> None:
        self.anchor = [0.0 if isnan(first) else first for first in self.first]

    def snapshot(self) -> dict[str, np.ndarray]:
        """Everything but the count, as arrays."""
        return {name: np.array(getattr(self, name)) for name in ARRAYS}

    def restore(self, saved: Mapping[str, np.ndarray], count: int) -> None:
        """Take up where `snapshot` was made."""
        for name in ARRAYS:
            setattr(self, name, saved[name].tolist())
        self.count = count
        self._take_off()
