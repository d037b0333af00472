"""Calibration of one stream: surprises to scores, p-values, and alarms at the asked-for rate.

A surprise has parts: how far the newest samples are from the recalled ones at several scales, and
how far from their own level. Each part is compared with what is usual of it (`adaptive.usual`),
by level of computation; the part that stands out most is the score. Its rank among the earlier
ones is the p-value. An alarm is a score above a threshold that moves up with every alarm and down
with every quiet sample, so that in the long run as many come as were asked for, whatever the
distribution. Repeats within a rest are one alarm. What an alarm has moved is taken back when an
operator confirms it, or true alarms would make the next ones rarer.

Beside it the strength of what the last few samples say together,

    strength = (mean of the last 10 - long-run mean) / long-run standard deviation,

or more, where a value leaves the range of all values so far; 0 in the shadow of a notable one.
Pure Python: it also serves the mandatory answer.

References:
    Lavin & Ahmad, Evaluating real-time anomaly detection algorithms, 2015 (strength);
    Angelopoulos et al., Conformal PID control, 2023 (quantile tracking), here on the inverse
    hyperbolic sine of the distance, so that a step is a share where distances are large. Unlike
    theirs the tracker stands still while an alarm rests, or repeats would buy silence.
"""

from collections import deque
from collections.abc import Callable, Sequence
from math import asinh, exp, inf, isfinite
from typing import NamedTuple

from adaptive.usual import Usual

BINS, BINS_A_UNIT = 512, 56  # of the histogram of distances, on their inverse hyperbolic sine
FORGET_AT = 1 << 16  # counts; then all are halved
NORMAL = 6400  # [samples] of the running mean of a surprise
CAP = 10.0  # surprises, relative to their mean, count no more than this in a strength
RECENT, LIKELIHOOD = 10, 8640  # [samples] of the two means of a strength
LEAST_MEAN, LEAST_DEVIATION = 0.03, 0.0173  # Lavin & Ahmad's floors, for a mean of ten in [0, 1]
BURN_IN = 300  # [samples] before anything alarms
OUTSIDE = 0.05  # of the range
TRACK = 0.1  # step of the threshold
HIGHEST = 7.0  # threshold
FIRST_THRESHOLD = 8.0  # [spreads above the median]
LONGEST = 10.0  # usual intervals that the time between two samples counts for
MOST_REST = 0.05  # of the asked-for time between two alarms
NOTABLE = 4.0  # [deviations]; of 9 rules compared on NAB's files the best
RANGE_STRENGTH = 8.0
SOFTNESS = 4.0  # [spreads] of the score


class Surprise(NamedTuple):
    """What a surprise is compared with the earlier ones of its level."""

    relative: float  # the distances alone; 1 is usual
    above: float  # of the part that stands out most [spreads above its median], as far as believed
    p_value: float  # share of earlier samples that stood out at least as much, in (0, 1]
    part: int  # that stands out most; -1: none


USUAL = Surprise(1.0, 0.0, 1.0, -1)  # of a sample of which nothing was measured


class Verdict(NamedTuple):
    """What calibration says of one sample."""

    score: float  # in [0, 1], higher is stranger; with one meaning in all streams
    p_value: float  # share of earlier samples that stood out at least as much, in (0, 1]
    strength: float  # of the last samples together, in [0, 1); 0 in repeats of a notable one
    alarm: bool
    dismissed: bool  # what would have been an alarm is like a dismissed one


class Rank:
    """What is known of one level's surprises."""

    __slots__ = ("counts", "highest", "mean", "total", "usual")

    def __init__(self) -> None:
        self.counts = [0.0] * BINS
        self.total = 0.0
        self.highest = 0
        self.mean: list[float] = []
        self.usual: list[Usual] = []

    def relative(self, distances: Sequence[float]) -> float:
        """Mean over distances, each divided by its own running mean, then learned.

        1 while a part has never been above 0.
        """
        if not self.mean:
            self.mean = [0.0] * len(distances)
        rate = max(1.0 / (self.total + 1.0), 1.0 / NORMAL)
        total = 0.0
        for i, part in enumerate(distances):
            mean = self.mean[i]
            total += part / mean if mean > 0 else 1.0
            self.mean[i] = mean + rate * (part - mean) if mean > 0 else part
        return total / len(distances)

    def above(self, parts: Sequence[float]) -> tuple[float, float, int]:
        """How far the part that stands out most is above its median; negative parts are unknown.

        Returns:
            As far as it is to be believed yet, and in full; and which part it is, -1 for none.
        """
        if not self.usual:
            self.usual = [Usual() for _ in parts]
        most, in_full, which = -inf, -inf, -1
        for i, part in enumerate(parts):
            if part >= 0:
                trust, above = self.usual[i].trust, self.usual[i].above(part)
                if trust * above > most:
                    most, which = trust * above, i
                in_full = max(in_full, above)
        return (most, in_full, which) if which >= 0 else (0.0, 0.0, -1)

    def p_value(self, above: float) -> float:
        """Rank among the earlier ones, then count this one."""
        at = min(max(asinh(above) * BINS_A_UNIT + BINS // 2, 0.0), BINS - 1.0)
        bin_, within = int(at), at - int(at)
        if bin_ > self.highest or self.total == 0:
            # Beyond all seen: an exponential tail orders what counting cannot.
            beyond = exp(-(bin_ - self.highest + within) / BINS_A_UNIT) if self.total else 1.0
        else:
            beyond = sum(self.counts[bin_ + 1 : self.highest + 1]) + 1.0
            beyond += (1 - within) * self.counts[bin_]
        p = min(beyond / (self.total + 1.0), 1.0)
        self.counts[bin_] += 1.0
        self.total += 1.0
        self.highest = max(self.highest, bin_)
        if self.total >= FORGET_AT:
            self.counts = [c / 2 for c in self.counts]
            self.total = sum(self.counts)
        return p

    def quantile(self, share: float) -> float:
        """The distance that a share of the earlier ones exceeded, as its hyperbolic arcsine."""
        left = share * self.total
        for bin_ in range(self.highest, -1, -1):
            left -= self.counts[bin_]
            if left < 0:
                return (bin_ + 1 - BINS // 2) / BINS_A_UNIT
        return 0.0

    def snapshot(self) -> list:
        """Everything, as plain numbers and lists."""
        usual = [one.snapshot() for one in self.usual]
        return [self.total, self.highest, list(self.mean), list(self.counts), usual]

    def restore(self, saved: list) -> None:
        """Take up where `snapshot` was made."""
        total, highest, mean, counts, parts = saved
        self.total, self.highest = float(total), int(highest)
        self.mean, self.counts = list(mean), list(counts)
        self.usual = [Usual() for _ in parts]
        for one, part in zip(self.usual, parts, strict=True):
            one.restore(part)


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
        self.threshold = asinh(FIRST_THRESHOLD)
        self.resting = self.quiet = self.hiding = 0
        self.interval, self.time = 0.0, -inf
        self.counted = False  # whether the newest sample was an alarm, or would have been one

    def rank(self, level: int, parts: Sequence[float], distances: int = 1) -> Surprise:
        """Put a surprise of a level in relation to the earlier ones of that level.

        Args:
            level: Index of the level; -1 is the mandatory answer.
            parts: At least 0, each in a unit of its own; negative where unknown.
            distances: How many of the first parts are distances to what was to be expected.

        Returns:
            The surprise, compared.
        """
        rank = self.ranks.get(level) or self.ranks.setdefault(level, Rank())
        relative = rank.relative([max(part, 0.0) for part in parts[:distances]])
        above, in_full, part = rank.above(parts)
        return Surprise(relative, above, rank.p_value(in_full), part)

    def judge(
        self,
        time: float,
        values: Sequence[float],
        level: int,
        surprise: Surprise,
        dismissed: Callable[[], bool] = lambda: False,
    ) -> Verdict:
        """Decide about an alarm; once for each sample, in order.

        Args:
            time: Of the sample [s].
            values: Of the sample, NaN where missing.
            level: Index of the level that gave the surprise.
            surprise: From `rank`.
            dismissed: Asked of what would be an alarm: whether an operator has dismissed the like.
                It is not raised then, but counts as one, or weaker ones would come in its place.
        """
        gap = time - self.time
        if 0 <= gap < inf:
            rate = max(1.0 / max(self.seen, 1), 0.001)
            most = LONGEST * self.interval or inf  # what was not observed earns no alarms
            self.interval += rate * (min(gap, most) - self.interval)
        self.time = time
        self.seen += 1
        strength = max(self._likelihood(surprise.relative), self._range(values))
        score = 1.0 / (1.0 + exp(-surprise.above / SOFTNESS))
        alarm, known = self._alarm(level, surprise.above, dismissed)
        return Verdict(score, surprise.p_value, self._shown(strength), alarm, known)

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

    def _shown(self, strength: float) -> float:
        shown = 0.0 if self.hiding else max(strength, 0.0)
        self.hiding = self.rest if shown > NOTABLE else max(self.hiding - 1, 0)
        return shown / (1.0 + shown)

    def _alarm(self, level: int, above: float, dismissed: Callable[[], bool]) -> tuple[bool, bool]:
        """Whether it is an alarm, and whether it would be one, had it not been dismissed."""
        self.counted = False
        asked = self.alarms_per_day * self.interval / 86400.0  # of the samples
        if self.seen == BURN_IN and level in self.ranks:
            rank = self.ranks[level]
            if 2 * rank.total >= BURN_IN:  # of a few samples the quantile says nothing
                self.threshold = min(self.threshold, rank.quantile(asked))
        if self.seen <= BURN_IN or not self.alarms_per_day:
            return False, False
        if self.resting:
            self.resting -= 1
            return False, False
        alarm = asinh(above) > self.threshold
        known = alarm and dismissed()
        if self.quiet and (known or not alarm):  # after a dismissed one it rests for all but others
            self.quiet -= 1
            return False, known
        rest = int(min(self.rest, MOST_REST / asked)) if asked > 0 else self.rest
        # Resting samples cannot alarm, so the others alarm that much more often.
        asked = min(asked / max(1.0 - asked * rest, 0.5), 0.5)
        self.threshold = min(max(self.threshold + TRACK * (float(alarm) - asked), 0.0), HIGHEST)
        self.counted = alarm
        if known:
            self.quiet = rest
        elif alarm:
            self.resting, self.quiet = rest, 0
        return alarm and not known, known

    def confirm(self, alarms: int) -> None:
        """Leave confirmed alarms out of the rate that was asked for: it is of all others.

        Negative for alarms that are taken in again.
        """
        self.threshold = min(max(self.threshold - TRACK * alarms, 0.0), HIGHEST)

    def snapshot(self) -> dict[str, object]:
        """Everything that outlives a restart, as plain numbers and lists."""
        ranks = {str(level): rank.snapshot() for level, rank in self.ranks.items()}
        numbers = (self.seen, self.mean, self.square, self.threshold, self.resting, self.hiding)
        return {
            "ranks": ranks,
            "recent": list(self.recent),
            "numbers": [*numbers, self.quiet, self.interval, self.time if self.seen else 0.0],
            # JSON knows no infinity: a channel that was never seen has no range.
            "low": [None if x == inf else x for x in self.low],
            "high": [None if x == -inf else x for x in self.high],
        }

    def restore(self, saved: dict) -> None:
        """Take up where `snapshot` was made."""
        for level, rank in saved["ranks"].items():
            self.ranks.setdefault(int(level), Rank()).restore(rank)
        self.recent = deque(saved["recent"], maxlen=RECENT)
        seen, self.mean, self.square, self.threshold, resting, hiding = saved["numbers"][:6]
        quiet, self.interval, newest = saved["numbers"][6:]
        self.seen, self.resting = int(seen), int(resting)
        self.hiding, self.quiet = int(hiding), int(quiet)
        self.time = newest if self.seen else -inf
        self.low = [inf if x is None else x for x in saved["low"]]
        self.high = [-inf if x is None else x for x in saved["high"]]
