"""Calibration of one stream: surprises to p-values, p-values to alarms at the asked-for rate.

A surprise is how strange a sample is, in units that differ between levels and streams. It is
divided by its own running mean, ranked among the earlier ones of the same level (the p-value), and
averaged over the last few samples, which gives the strength of an alarm:

    strength = (mean of the last 10 - long-run mean) / long-run standard deviation,

or more, where a value leaves the range of all values so far. An alarm is a strength above a
threshold that moves up with every alarm and down with every quiet sample, so that in the long run
as many alarms come as were asked for, whatever the distribution. Repeats within `rest` samples are
one alarm. Pure Python: it also serves the mandatory answer.

References:
    Lavin & Ahmad, Evaluating real-time anomaly detection algorithms, 2015 (anomaly likelihood);
    Angelopoulos et al., Conformal PID control, 2023 (quantile tracking), here on the logarithm of
    the strength, so that the step has no unit. Unlike theirs the tracker stands still while an
    alarm rests, or repeats would buy silence.
"""

from collections import deque
from collections.abc import Sequence
from math import exp, inf, isfinite, log
from typing import NamedTuple

BINS, BINS_PER_E = 512, 32  # of the histogram of log surprise, around 1
FORGET_AT = 1 << 16  # counts; then all are halved
NORMAL = 6400  # [samples] of the running mean of a surprise
CAP = 10.0  # surprises, relative to their mean, count no more than this in a strength
RECENT, LIKELIHOOD = 10, 8640  # [samples] of the two means of a strength
LEAST_MEAN, LEAST_DEVIATION = 0.03, 0.0173  # Lavin & Ahmad's floors, for a mean of ten in [0, 1]
BURN_IN = 300  # [samples] before the likelihood or the range speak
OUTSIDE = 0.05  # of the range
TRACK = 0.1  # step of the threshold's logarithm
FIRST_THRESHOLD = 4.0
NOTABLE = 4.0  # [deviations]; of 9 rules compared on NAB's files the best
RANGE_STRENGTH = 8.0


class Verdict(NamedTuple):
    """What calibration says of one sample."""

    score: float  # in [0, 1]: 1 - p_value
    p_value: float  # share of earlier samples that were at least as strange, in (0, 1]
    strength: float  # of an alarm, in [0, 1); 0 in repeats of a notable one
    alarm: bool


class Rank:
    """Empirical tail probability of one level's surprises, forgetting slowly."""

    __slots__ = ("counts", "highest", "mean", "total")

    def __init__(self) -> None:
        self.counts = [0.0] * BINS
        self.total = 0.0
        self.highest = 0
        self.mean: list[float] = []

    def relative(self, surprise: Sequence[float]) -> float:
        """Mean over the surprises' parts, each divided by its own running mean, then learned.

        1 while a part has never been above 0.
        """
        if not self.mean:
            self.mean = [0.0] * len(surprise)
        rate = max(1.0 / (self.total + 1.0), 1.0 / NORMAL)
        total = 0.0
        for i, part in enumerate(surprise):
            mean = self.mean[i]
            total += part / mean if mean > 0 else 1.0
            self.mean[i] = mean + rate * (part - mean) if mean > 0 else part
        return total / len(surprise)

    def p_value(self, relative: float) -> float:
        """Rank among the earlier ones, then count this one."""
        at = (log(relative) * BINS_PER_E if relative > 0 else -BINS) + BINS // 2
        at = min(max(at, 0.0), BINS - 1.0)
        bin_, within = int(at), at - int(at)
        if bin_ > self.highest or self.total == 0:
            # Beyond all seen: an exponential tail orders what counting cannot.
            above = exp(-(bin_ - self.highest + within) / BINS_PER_E) if self.total else 1.0
        else:
            above = sum(self.counts[bin_ + 1 : self.highest + 1]) + 1.0
            above += (1 - within) * self.counts[bin_]
        p = min(above / (self.total + 1.0), 1.0)
        self.counts[bin_] += 1.0
        self.total += 1.0
        self.highest = max(self.highest, bin_)
        if self.total >= FORGET_AT:
            self.counts = [c / 2 for c in self.counts]
            self.total = sum(self.counts)
        return p


class Calibration:
    """The calibration of one stream."""

    def __init__(self, alarms_per_day: float, rest: int):
        """Start with nothing known.

        Args:
            alarms_per_day: The long-run rate of alarms that is asked for.
            rest: How long a repeat of an alarm is not a new one [samples].
        """
        self.alarms_per_day = alarms_per_day
        self.rest = rest
        self.ranks: dict[int, Rank] = {}
        self.seen = 0
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.mean, self.square = 0.0, 0.0
        self.low: list[float] = []
        self.high: list[float] = []
        self.threshold = log(FIRST_THRESHOLD)
        self.resting = self.hiding = 0
        self.interval, self.time = 0.0, -inf

    def rank(self, level: int, surprise: Sequence[float]) -> tuple[float, float]:
        """Put a surprise of a level in relation to the earlier ones of that level.

        Args:
            level: Index of the level; -1 is the mandatory answer.
            surprise: Its parts, at least 0, each in a unit of its own.

        Returns:
            The relative surprise (1 is usual) and the p-value.
        """
        rank = self.ranks.setdefault(level, Rank())
        relative = rank.relative(surprise)
        return relative, rank.p_value(relative)

    def judge(
        self, time: float, values: Sequence[float], relative: float, p_value: float
    ) -> Verdict:
        """Decide about an alarm; once for each sample, in order.

        Args:
            time: Of the sample [s].
            values: Of the sample, NaN where missing.
            relative: From `rank`.
            p_value: From `rank`.
        """
        if 0 < time - self.time < inf:
            rate = max(1.0 / self.seen, 0.001)
            self.interval += rate * (time - self.time - self.interval)
        self.time = time
        self.seen += 1
        strength = max(self._likelihood(relative), self._range(values))
        return Verdict(1.0 - p_value, p_value, *self._alarm(strength))

    def _likelihood(self, relative: float) -> float:
        self.recent.append(min(relative / CAP, 1.0))
        mean = sum(self.recent) / len(self.recent)
        spread = max(
            (self.square - self.mean * self.mean) ** 0.5 if self.seen > 1 else 0.0, LEAST_DEVIATION
        )
        z = (mean - max(self.mean, LEAST_MEAN)) / spread
        rate = max(1.0 / self.seen, 1.0 / LIKELIHOOD)
        self.mean += rate * (mean - self.mean)
        self.square = max(self.square + rate * (mean * mean - self.square), self.mean * self.mean)
        return z if self.seen > BURN_IN else 0.0

    def _range(self, values: Sequence[float]) -> float:
        if not self.low:
            self.low, self.high = [inf] * len(values), [-inf] * len(values)
        outside = False
        for i, x in enumerate(values):
            if not isfinite(x):
                continue
            low, high = self.low[i], self.high[i]
            margin = OUTSIDE * (high - low)
            outside |= x < low - margin or x > high + margin
            self.low[i], self.high[i] = min(low, x), max(high, x)
        return RANGE_STRENGTH if outside and self.seen > BURN_IN else 0.0

    def _alarm(self, strength: float) -> tuple[float, bool]:
        # For the table of strengths an excursion begins where it is notable; for alarms where it
        # passes the threshold, or one that grows would hide its own peak from a high threshold.
        shown = 0.0 if self.hiding else max(strength, 0.0)
        self.hiding = self.rest if shown > NOTABLE else max(self.hiding - 1, 0)
        alarm = self.resting == 0 and strength > 0 and log(strength) > self.threshold
        if self.resting:
            self.resting -= 1
        elif self.seen > BURN_IN:
            asked = self.alarms_per_day * self.interval / 86400.0
            # Resting samples cannot alarm, so the others alarm that much more often.
            asked = min(asked / max(1.0 - asked * self.rest, 0.5), 0.5)
            self.threshold += TRACK * (float(alarm) - asked)
            self.threshold = min(max(self.threshold, -7.0), 7.0)
        if alarm:
            self.resting = self.rest
        return shown / (1.0 + shown), alarm

    def snapshot(self) -> dict[str, object]:
        """Everything that outlives a restart, as plain numbers and lists."""
        ranks = {
            str(level): [rank.total, rank.highest, list(rank.mean), list(rank.counts)]
            for level, rank in self.ranks.items()
        }
        numbers = (self.seen, self.mean, self.square, self.threshold, self.resting, self.hiding)
        return {
            "ranks": ranks,
            "recent": list(self.recent),
            "numbers": [*numbers, self.interval, self.time if self.seen else 0.0],
            # JSON knows no infinity: a channel that was never seen has no range.
            "low": [None if x == inf else x for x in self.low],
            "high": [None if x == -inf else x for x in self.high],
        }

    def restore(self, saved: dict) -> None:
        """Take up where `snapshot` was made."""
        for level, (total, highest, mean, counts) in saved["ranks"].items():
            rank = self.ranks.setdefault(int(level), Rank())
            rank.total, rank.highest = float(total), int(highest)
            rank.mean, rank.counts = list(mean), list(counts)
        self.recent = deque(saved["recent"], maxlen=RECENT)
        seen, self.mean, self.square, self.threshold, resting, hiding = saved["numbers"][:6]
        self.interval, newest = saved["numbers"][6:]
        self.seen, self.resting, self.hiding = int(seen), int(resting), int(hiding)
        self.time = newest if self.seen else -inf
        self.low = [inf if x is None else x for x in saved["low"]]
        self.high = [-inf if x is None else x for x in saved["high"]]
