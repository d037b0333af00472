"""Counters that add up, quantiles and rates: what an agent can say about itself at any moment.

Plain Python, nothing here asks for the time, and everything goes to plain dicts and back, so that
a restarted agent goes on counting where it was.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import accumulate
from math import ceil, exp, inf, isfinite, log, nan
from typing import Any

WINDOW = 64  # [samples] within which a late sample is told from one that came twice
KINDS = ("received", "paired", "too_early_pending", "too_late", "learned")  # of feedback
PLACE = ("newest", "newest_time", "seen")  # what names a place in a sequence


@dataclass(slots=True)
class Counters:
    """What became of every sample of one stream; the identity always holds.

        received = full + mandatory + shed + in flight

    Attributes:
        received: Samples that were taken in, as they are behind the transforms.
        full: Answered at a refined level, whether by the deadline or not.
        mandatory: Answered by the mandatory score alone.
        reasons: Why answers were mandatory: `unready` models, a model that was `behind` so that it
            was not waited for, `no_room` for it in the time there was, a `budget` that it was not
            worth, a call that took `longer`, time that was up while the sample had yet to be
            taken: `waited`, or a model that gave something that is no number: `unsound`.
        shed: Given up by a named policy, by its name.
        in_flight: Taken in and not yet answered.
        missing: Sequence numbers that never came (fewer again when they come late).
        duplicates: Came twice; not received.
        restarts: The sensor began to count anew.
        rejected: Could not be made a sample or feedback, by reason; not received.
        feedback: Feedback by kind, see `KINDS`.
        met: Answers by their deadline.
        missed: Answers after their deadline.
        causes: Of these: the answer was published `late`, or the `sink` took it late.
        alarms: Alarms raised.
        dismissed: Samples that would have raised one, had the like not been dismissed.
        learn_steps: Learning steps that landed.
        learn_rejected: Learning steps undone: not finite, or the encoder went back to its anchor.
        left_out: Samples that were answered, but left out of the model's memory: too many waited,
            or a budget was too small.
        levels: Answers by level, -1 for the mandatory answer alone.
        newest: The highest sequence number so far; -1 before the first.
        newest_time: [s] the sample clock's time of that.
        seen: Bit k is set if the sequence number `newest - k` was received.
    """

    received: int = 0
    full: int = 0
    mandatory: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    shed: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    missing: int = 0
    duplicates: int = 0
    restarts: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    feedback: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    met: int = 0
    missed: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    alarms: int = 0
    dismissed: int = 0
    learn_steps: int = 0
    learn_rejected: int = 0
    left_out: int = 0
    levels: dict[int, int] = field(default_factory=dict)
    newest: int = -1
    newest_time: float = -inf
    seen: int = 0

    def arrived(self, sequence: int, time: float) -> bool:
        """Count a sample in, and say whether it is new; one that is not must be dropped.

        Gaps in the sequence are missing samples. A number below the newest is an old sample that
        came again or late, unless its time is newer: then the sensor has begun to count anew.

        Args:
            sequence: The sample's number.
            time: [s] on the sample's own clock.
        """
        behind = self.newest - sequence
        if self.newest < 0 or (behind >= 0 and time > self.newest_time):
            self.restarts += self.newest >= 0
            self.newest, self.newest_time, self.seen = sequence, time, 1
        elif behind < 0:
            self.missing -= behind + 1
            self.seen = (self.seen << min(-behind, WINDOW) | 1) & ((1 << WINDOW) - 1)
            self.newest, self.newest_time = sequence, time
        elif behind >= WINDOW or self.seen >> behind & 1:
            self.duplicates += 1
            return False
        else:
            self.seen |= 1 << behind
            self.missing = max(0, self.missing - 1)
        self.received += 1
        self.in_flight += 1
        return True

    def became(self, count: int) -> None:
        """Take note, after `arrived`, that transforms made so many samples of one."""
        self.received += count - 1
        self.in_flight += count - 1

    def answered(self, level: int, slack: float, published: float = inf) -> None:
        """Count a sample out.

        Args:
            level: Of the answer that was given; -1 for the mandatory answer alone.
            slack: [s] left until the deadline when it was given; negative is a miss.
            published: [s] left when it was handed to the sinks.
        """
        if level < 0:
            self.mandatory += 1
        else:
            self.full += 1
        self.in_flight -= 1
        self.levels[level] = self.levels.get(level, 0) + 1
        if slack >= 0.0:
            self.met += 1
        else:
            self.missed += 1
            cause = "late" if published < 0.0 else "sink"
            self.causes[cause] = self.causes.get(cause, 0) + 1

    def because(self, reason: str) -> None:
        """Count why an answer is mandatory."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def give_up(self, reason: str, count: int = 1) -> None:
        """Count samples out that a policy has shed; `reason` names the policy."""
        self.shed[reason] = self.shed.get(reason, 0) + count
        self.in_flight -= count

    @property
    def given_up(self) -> int:
        """How many samples were shed in all."""
        return sum(self.shed.values())

    @property
    def in_time(self) -> float:
        """The share of the answers that were there by their deadline; NaN before the first."""
        done = self.met + self.missed
        return self.met / done if done else nan

    def reject(self, reason: str) -> None:
        """Count what could not be made a sample or feedback."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def heard(self, kind: str, count: int = 1) -> None:
        """Count feedback of one of `KINDS`; a negative count takes back what is pending no more.

        Raises:
            ValueError: There is no such kind.
        """
        if kind not in self.feedback:
            raise ValueError(f"telemetry: kind must be one of {', '.join(KINDS)}, got {kind!r}.")
        self.feedback[kind] += count

    def include(self, other: "Counters") -> None:
        """Add what another stream has counted; what names a place in a sequence is left out."""
        for name in ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in TABLES:
            if counts := getattr(other, name):
                into = getattr(self, name)
                for key, count in counts.items():
                    into[key] = into.get(key, 0) + count

    def check(self, waiting: int | None = None) -> None:
        """Hold the identity, best against an independent count.

        Args:
            waiting: How many samples are really held somewhere between inbox and sinks.

        Raises:
            AssertionError: A sample was lost, or counted twice.
        """
        out = self.full + self.mandatory + sum(self.shed.values())
        waiting = self.in_flight if waiting is None else waiting
        if self.received != out + waiting or waiting < 0 or waiting != self.in_flight:
            raise AssertionError(
                f"telemetry: received must equal full + mandatory + shed + in flight, got "
                f"{self.received} and {self.full} + {self.mandatory} + {self.shed} + {waiting} "
                f"(counted in flight: {self.in_flight}). A sample was lost or counted twice."
            )

    def snapshot(self) -> dict[str, Any]:
        """Return everything as a dict that JSON can hold."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["newest_time"] = self.newest_time if isfinite(self.newest_time) else None
        plain["levels"] = {str(level): count for level, count in sorted(self.levels.items())}
        return {k: dict(v) if isinstance(v, dict) else v for k, v in plain.items()}

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any], lost: str = "restart") -> "Counters":
        """Go on from a snapshot.

        What was in flight when it was made died with the old process, unless a spool brings it
        back: it is shed, with the reason `lost`. Keys that this version does not know are left.
        """
        known = {f.name for f in fields(cls)} & snapshot.keys()
        plain: dict[str, Any] = {name: snapshot[name] for name in known}
        tables = "reasons", "causes", "shed", "rejected"
        plain |= {name: dict(plain[name]) for name in tables if name in known}
        plain["feedback"] = dict.fromkeys(KINDS, 0) | dict(plain.get("feedback", {}))
        plain["levels"] = {int(level): n for level, n in plain.get("levels", {}).items()}
        if plain.get("newest_time") is None:
            plain["newest_time"] = -inf
        counters = cls(**plain)
        if counters.in_flight:
            counters.give_up(lost, counters.in_flight)
        return counters


TABLES = tuple(f.name for f in fields(Counters) if f.default_factory is not MISSING)
ADDED = tuple(f.name for f in fields(Counters) if f.name not in (*TABLES, *PLACE))


class Quantiles:
    """Quantiles of a stream of positive numbers, by a histogram with bins of equal ratio.

    Adding is O(1), memory is fixed, and a quantile is off by a factor of `sqrt(ratio)` at most
    (between `low` and `high`; outside the extremes seen stand in).

    References:
        Masson, Rim and Lee, DDSketch, 2019, with fixed bins.
    """

    __slots__ = ("_scale", "bins", "count", "high", "largest", "low", "ratio", "smallest", "sum")

    def __init__(self, low: float = 1e-6, high: float = 100.0, ratio: float = 1.04):
        if not (0.0 < low < high < inf and ratio > 1.0):
            raise ValueError(
                "telemetry: quantiles need 0 < low < high and a ratio above 1, got "
                f"{low!r}, {high!r} and {ratio!r}."
            )
        self.low, self.high, self.ratio = low, high, ratio
        self._scale = 1.0 / log(ratio)
        self.bins = [0] * (ceil(log(high / low) * self._scale) + 2)  # first below, last above
        self.count, self.sum, self.smallest, self.largest = 0, 0.0, inf, -inf

    def add(self, value: float) -> None:
        """Count one value in, such as a latency [s]."""
        if value >= self.high:
            n = len(self.bins) - 1
        elif value >= self.low:
            n = min(1 + int(log(value / self.low) * self._scale), len(self.bins) - 2)
        else:  # also when it is not a number: it must show up somewhere
            n = 0
        self.bins[n] += 1
        self.count += 1
        if isfinite(value):
            self.sum += value
            self.smallest = min(value, self.smallest)
            self.largest = max(value, self.largest)

    def quantile(self, q: float) -> float:
        """Return the value below which a share of `q` lies; NaN if there is none yet."""
        return self.quantiles((q,))[0]

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Return the value below which each of some shares lies, as `quantile` does for one."""
        if not all(0.0 <= q <= 1.0 for q in shares):
            raise ValueError(f"telemetry: a quantile must lie between 0 and 1, got {shares!r}.")
        if self.smallest > self.largest:
            return [nan] * len(shares)
        below, found = list(accumulate(self.bins)), []
        for q in shares:
            rank = max(1, ceil(q * self.count))
            n = bisect_left(below, rank)
            middle = self.low * exp((n - 0.5) / self._scale) if n else self.smallest
            last = rank >= self.count or n == len(self.bins) - 1
            found.append(self.largest if last else min(max(middle, self.smallest), self.largest))
        return found

    def snapshot(self) -> dict[str, Any]:
        """Return what was counted as a dict that JSON can hold."""
        finite = self.smallest <= self.largest
        return {
            "bins": {str(n): size for n, size in enumerate(self.bins) if size},
            "size": len(self.bins),
            "sum": self.sum,
            "extremes": [self.smallest, self.largest] if finite else [],
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Add what a snapshot counted; so several streams can be made one, too.

        Raises:
            ValueError: The snapshot is of other bins.
        """
        if snapshot["size"] != len(self.bins):
            raise ValueError(
                f"telemetry: the snapshot must have {len(self.bins)} bins, got "
                f"{snapshot['size']}. Make the quantiles with the same low, high and ratio."
            )
        for n, size in snapshot["bins"].items():
            self.bins[int(n)] += size
            self.count += size
        self.sum += snapshot["sum"]
        for value in snapshot["extremes"]:
            self.smallest, self.largest = min(value, self.smallest), max(value, self.largest)


class Calls:
    """What a bank's governor had for its calls, what it expected of them, and what they took.

    Attributes:
        slack: [s] until the first answer was due, at each call.
        ratio: What each call took, in times what was expected.
        sure: Calls that were to be in time but for the accepted share.
        longer: Of these: took longer than there was.
        levels: Calls by level.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.slack, self.ratio = Quantiles(), Quantiles(1e-2, 1e3)
        self.sure = self.longer = 0
        self.levels: dict[int, int] = {}

    def add(self, level: int, sure: bool, slack: float, expected: float, cost: float) -> None:
        """Count a call.

        Args:
            level: That was decided; -1 where it was not for an answer.
            sure: Whether it was to be in time.
            slack: [s] there was.
            expected: [s] it takes usually, as things were.
            cost: [s] it took.
        """
        self.levels[level] = self.levels.get(level, 0) + 1
        self.ratio.add(cost / expected)
        if level >= 0:
            self.slack.add(max(slack, 0.0))
            self.sure += sure
            self.longer += sure and cost > slack

    def snapshot(self) -> dict[str, Any]:
        """The same as plain numbers."""
        slack = {f"slack_p{p}_ms": 1e3 * self.slack.quantile(p / 100) for p in (1, 50)}
        ratio = {f"cost_to_expected_p{p}": self.ratio.quantile(p / 100) for p in (50, 99)}
        return {name: x if isfinite(x) else None for name, x in (slack | ratio).items()} | {
            "sure": self.sure,
            "longer": self.longer,
            "levels": {str(level): many for level, many in sorted(self.levels.items())},
        }


class Rate:
    """Events per second, over about the last `span` [s]."""

    __slots__ = ("_weight", "span", "time", "value")

    def __init__(self, span: float = 10.0):
        if not 0.0 < span < inf:
            raise ValueError(f"telemetry: the span of a rate must be positive, got {span!r} s.")
        self.span, self.value, self.time = span, 0.0, -inf
        self._weight = 0.0  # how much of the kernel lies within the time seen, 0 to 1

    def add(self, now: float, count: int = 1) -> None:
        """Count events at the time `now` [s]; a time that runs backwards counts as the last."""
        self._decay(now)
        self.value += count / self.span

    def at(self, now: float) -> float:
        """Return the rate at the time `now` [Hz]; 0 before the first event."""
        if self.time == -inf:
            return 0.0
        kept = exp(-max(0.0, now - self.time) / self.span)
        weight = 1.0 - (1.0 - self._weight) * kept
        # In the first hundredth of the span a rate would be a guess: divide by that at least.
        return self.value * kept / max(weight, 0.01)

    def _decay(self, now: float) -> None:
        if self.time == -inf:
            self.time = now
        kept = exp(-max(0.0, now - self.time) / self.span)
        self.value *= kept
        self._weight = 1.0 - (1.0 - self._weight) * kept
        self.time = max(self.time, now)

    def snapshot(self) -> dict[str, float]:
        """Return the rate as a dict that JSON can hold, without the time: clocks differ."""
        return {"value": self.value, "weight": self._weight}

    def restore(self, snapshot: Mapping[str, float], now: float) -> None:
        """Go on from a snapshot as if it had been made at `now` [s]."""
        self.value, self._weight, self.time = snapshot["value"], snapshot["weight"], now
