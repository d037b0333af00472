"""Calibration of one stream: surprises to scores, and alarms at the asked-for rate.

What is surprising of a sample has parts: how far the newest samples are from the recalled ones at
several scales, and how far from their own level. Each part is compared with what is usual of it, by
level of computation, and the one that stands out most is the score (`adaptive.ranks`). An alarm is
a score above a threshold that moves up with every alarm and down with every quiet sample, so that
in the long run as many come as were asked for, whatever the distribution. Repeats within a rest are
one alarm. What an alarm has moved is taken back when an operator confirms it, or true alarms would
make the next ones rarer.

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
from math import asinh, exp, floor, inf, isfinite
from typing import NamedTuple

from adaptive.surprise import BINS_A_UNIT, Surprise

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


class Verdict(NamedTuple):
    """What calibration says of one sample."""

    score: float  # in [0, 1], higher is stranger; with one meaning in all streams
    p_value: float  # share of earlier samples that stood out at least as much, in (0, 1]
    strength: float  # of the last samples together, in [0, 1); 0 in repeats of a notable one
    alarm: bool
    dismissed: bool  # what would have been an alarm is like a dismissed one


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
        self.early: list[tuple[int, float]] = []  # level, and how far above, until `BURN_IN`
        self.seen = 0
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.mean, self.square = 0.0, 0.0
        self.low: list[float] = []
        self.high: list[float] = []
        self.threshold = asinh(FIRST_THRESHOLD)
        self.resting = self.quiet = self.hiding = 0
        self.interval, self.time = 0.0, -inf
        self.counted = False  # whether the newest sample was an alarm, or would have been one

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
            surprise: How it compares with the earlier ones of that level.
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
        if self.seen <= BURN_IN:
            self.early.append((level, surprise.in_full))
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
        if self.seen == BURN_IN:
            same = sorted((x for of, x in self.early if of == level), reverse=True)
            if 2 * len(same) >= BURN_IN:  # of a few samples the quantile says nothing
                more = int(asked * len(same))  # that may be above it
                first = floor(asinh(same[more]) * BINS_A_UNIT) + 1 if more < len(same) else 0
                self.threshold = min(self.threshold, first / BINS_A_UNIT)
            self.early = []
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
        numbers = (self.seen, self.mean, self.square, self.threshold, self.resting, self.hiding)
        return {
            "early": [list(one) for one in self.early],
            "recent": list(self.recent),
            "numbers": [*numbers, self.quiet, self.interval, self.time if self.seen else 0.0],
            # JSON knows no infinity: a channel that was never seen has no range.
            "low": [None if x == inf else x for x in self.low],
            "high": [None if x == -inf else x for x in self.high],
        }

    def restore(self, saved: dict) -> None:
        """Take up where `snapshot` was made."""
        self.early = [(level, above) for level, above in saved["early"]]
        self.recent = deque(saved["recent"], maxlen=RECENT)
        seen, self.mean, self.square, self.threshold, resting, hiding = saved["numbers"][:6]
        quiet, self.interval, newest = saved["numbers"][6:]
        self.seen, self.resting = int(seen), int(resting)
        self.hiding, self.quiet = int(hiding), int(quiet)
        self.time = newest if self.seen else -inf
        self.low = [inf if x is None else x for x in saved["low"]]
        self.high = [-inf if x is None else x for x in saved["high"]]
