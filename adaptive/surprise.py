"""How surprising a value is among all of its kind so far, of a quantity that is never negative.

How far it lies above the median of the earlier ones (`adaptive.usual`), the share of the earlier
ones that lay at least as far above theirs, and its size relative to the running mean. In pure
Python, for the answer without a model; `adaptive.ranks` does the same for what a model finds.
"""

from math import asinh, exp
from typing import NamedTuple

from adaptive.usual import Usual

BINS, BINS_A_UNIT = 512, 56  # of the histogram of distances, on their inverse hyperbolic sine
FORGET_AT = 1 << 16  # counts; then all are halved
NORMAL = 6400  # [samples] of the running mean


class Surprise(NamedTuple):
    """What is known of how strange a sample is, from all earlier ones judged the same way."""

    relative: float  # the distances alone, to what was to be expected; 1 is usual
    above: float  # of the part that stands out most [spreads above its median], as far as believed
    in_full: float  # the largest, believed or not
    p_value: float  # share of earlier samples that stood out at least as much, in (0, 1]
    part: int  # that stands out most; -1: none


USUAL = Surprise(1.0, 0.0, 0.0, 1.0, -1)  # of a sample of which nothing was measured


def place(above: float) -> float:
    """Where a distance lies in its histogram [bins]."""
    return min(max(asinh(above) * BINS_A_UNIT + BINS // 2, 0.0), BINS - 1.0)


class Rank:
    """What is known of the surprises of one quantity."""

    __slots__ = ("counts", "highest", "mean", "total", "usual")

    def __init__(self) -> None:
        self.counts = [0.0] * BINS
        self.total = 0.0
        self.highest = 0
        self.mean = 0.0
        self.usual = Usual()

    def compare(self, value: float) -> Surprise:
        """Compare a value, at least 0, with those counted."""
        relative, above = value / self.mean if self.mean > 0 else 1.0, self.usual.compare(value)
        return Surprise(relative, self.usual.trust * above, above, self._share(above), 0)

    def rank(self, value: float) -> Surprise:
        """As `compare`; then count it."""
        surprise, mean = self.compare(value), self.mean
        rate = max(1.0 / (self.total + 1.0), 1.0 / NORMAL)
        self.mean = mean + rate * (value - mean) if mean > 0 else value
        self._count(self.usual.above(value))
        return surprise

    def p_value(self, above: float) -> float:
        """Share of those counted that were at least as far above, itself too; then count it."""
        share = self._share(above)
        self._count(above)
        return share

    def _share(self, above: float) -> float:
        at = place(above)
        bin_, within = int(at), at - int(at)
        if bin_ > self.highest or self.total == 0:
            # Beyond all seen: an exponential tail orders what counting cannot.
            beyond = exp(-(bin_ - self.highest + within) / BINS_A_UNIT) if self.total else 1.0
        else:
            beyond = sum(self.counts[bin_ + 1 : self.highest + 1]) + 1.0
            beyond += (1 - within) * self.counts[bin_]
        return min(beyond / (self.total + 1.0), 1.0)

    def _count(self, above: float) -> None:
        bin_ = int(place(above))
        self.counts[bin_] += 1.0
        self.total += 1.0
        self.highest = max(self.highest, bin_)
        if self.total >= FORGET_AT:
            self.counts = [c / 2 for c in self.counts]
            self.total = sum(self.counts)

    def snapshot(self) -> list:
        """Everything, as plain numbers and lists."""
        return [self.total, self.highest, self.mean, list(self.counts), self.usual.snapshot()]

    def restore(self, saved: list) -> None:
        """Take up where `snapshot` was made."""
        total, highest, self.mean, counts, usual = saved
        self.total, self.highest, self.counts = float(total), int(highest), list(counts)
        self.usual.restore(usual)
