"""Vehicle counts at the counters of a town, with incidents, faulty counters and slow drift."""

import importlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import scipy

from sensors.truth import Block, Event, quiet_stretches

DAY = 86_400.0  # [s]
QUIET = 7200.0  # [s] length of a stretch in which an operator finds nothing
FAULTS = (("stuck_zero", 1), ("stuck_value", 1), ("missing", None))  # kinds and their labels


class Incident(NamedTuple):
    """An incident that may not be over yet."""

    first: int  # [samples] since the start of the signal
    counter: int
    left: np.ndarray  # [samples] share of the flow that it leaves, until it leaves nearly all


class Fault(NamedTuple):
    """A fault of a counter that may not be over yet."""

    first: int  # [samples] since the start of the signal
    end: int  # [samples] the first that is read again
    counter: int
    reading: float  # what is read instead; NaN: nothing


@dataclass(frozen=True, kw_only=True)
class TrafficSignal:
    """What the simulated traffic is like.

    Each counter reports, at the end of an interval, how many vehicles passed in it: a Poisson
    number whose rate is the counter's share of a profile of the week (two rush hours on working
    days, one flat hump at weekends), times a lognormal disturbance that all share, times what
    the incidents leave. At an incident the flow of one counter drops at once, stays low until
    the scene is cleared, an exponential time, and recovers exponentially.

    What happens: an `incident` and a counter that is `stuck_zero` or `stuck_value` are confirmed
    by an operator (label 1), a `missing` counter (NaN) speaks for itself (no label), and some
    `quiet` stretches are looked at in vain (label 0).

    Args:
        counters: How many counters; they differ in size and in the direction of the commuters.
        interval_s: Time between readings.
        rush_hour_flow_per_h: Vehicles in an hour of rush at an average counter.
        incidents_per_day: Of all counters together; more in busy hours.
        faults_per_day: Of all counters together.
        drift_per_day: Standard deviation of the change of a counter's sensitivity in a day, as a
            share of it; the changes add up to a random walk.
        quiet_labels_per_day: How often an operator looks and finds nothing, at most.
        start_time_s: Time of the first sample, the end of the first interval; the hour and the
            day of the week follow from it, in UTC. The default is a Monday, 2024-01-01 00:00.
        seed: The same seed gives the same signal, however much of it is asked for.

    Raises:
        ValueError: An option is out of range.

    References:
        Lewis & Shedler, Simulation of nonhomogeneous Poisson processes by thinning, Naval Res.
        Logistics Quarterly 26, 1979. Counts of intervals need no thinning: they are Poisson with
        the mean rate of the interval, here that of its middle.
        The exponential clearance time is the simplest of those fitted by Nam & Mannering, An
        exploratory hazard-based analysis of highway incident duration, Transp. Res. A 34, 2000.
        The profile is chosen by eye.
    """

    counters: int = 4
    interval_s: float = 300.0
    rush_hour_flow_per_h: float = 1200.0
    incidents_per_day: float = 1.0
    faults_per_day: float = 0.2
    drift_per_day: float = 0.005
    quiet_labels_per_day: float = 2.0
    start_time_s: float = 1_704_067_200.0
    seed: int = 0

    def __post_init__(self):
        importlib.import_module("scipy.signal")  # takes long: not when the first sample is due
        if self.counters < 1:
            raise ValueError(f"counters must be at least 1, got {self.counters}")
        if not 0 < self.interval_s <= 3600:
            raise ValueError(
                f"interval_s must be more than 0 and at most 3600, got {self.interval_s}: over "
                "longer intervals the rush hours blur. Add counts up instead."
            )

    def times(self, numbers: np.ndarray) -> np.ndarray:
        """Return the times of samples, the ends of their intervals [s].

        Args:
            numbers: `[samples]`, 0 is the first sample of the signal.
        """
        return self.start_time_s + numbers * self.interval_s

    def blocks(self) -> Iterator[Block]:
        """Generate the signal from its start, without end.

        Yields:
            Blocks of about a day, of 4096 samples at most [vehicles per interval].
        """
        town, passing, disturber, operator = np.random.default_rng(self.seed).spawn(4)
        size = min(4096, max(1, round(DAY / self.interval_s)))
        share = town.lognormal(0.0, 0.3, self.counters)
        inward = 0.3 + 0.4 * (np.arange(self.counters) % 2) + town.uniform(-0.1, 0.1, self.counters)
        rush = share * self.rush_hour_flow_per_h * self.interval_s / 3600
        # Hours of weather, and of other people's plans.
        pole = math.exp(-self.interval_s / 7200)
        push, weather = 0.06 * math.sqrt(1 - pole**2), np.zeros((1, 1))
        step, drift = self.drift_per_day * math.sqrt(self.interval_s / DAY), np.zeros(self.counters)
        incidents: list[Incident] = []
        faults: list[Fault] = []
        events: list[Event] = []
        for first in count(step=size):
            begin, end = self.times(np.array([first, first + size])).tolist()
            events = [event for event in events if event.end > begin]

            time = self.times(np.arange(first, first + size)) - self.interval_s / 2
            flow = profile(time, inward)  # [samples, counters]
            incidents = [one for one in incidents if one.first + len(one.left) > first]
            for incident, event in self.draw_incidents(disturber, first, flow):
                incidents.append(incident)
                events.append(event)
            for incident in incidents:
                here, there = overlap(incident.first, len(incident.left), first, size)
                flow[here, incident.counter] *= incident.left[there]
            noise = push * town.standard_normal((size, 1))
            shared, weather = scipy.signal.lfilter([1.0], [1.0, -pole], noise, axis=0, zi=weather)
            walk = drift + step * np.cumsum(town.standard_normal((size, self.counters)), axis=0)
            drift = walk[-1]
            values = passing.poisson(rush * flow * np.exp(shared + walk)).astype(float)

            faults = [one for one in faults if one.end > first]
            for fault, event in self.draw_faults(disturber, first, values):
                faults.append(fault)
                events.append(event)
            for fault in faults:
                here, _ = overlap(fault.first, fault.end - fault.first, first, size)
                values[here, fault.counter] = fault.reading

            events += quiet_stretches(
                operator,
                events,
                begin=begin,
                end=end,
                expected=self.quiet_labels_per_day * (end - begin) / DAY,
                length=min(QUIET, (end - begin) / 2),
            )
            began = [event for event in events if begin <= event.start < end]
            yield Block(values, tuple(sorted(began, key=lambda event: event.start)))

    def draw_incidents(
        self, rng: np.random.Generator, first: int, flow: np.ndarray
    ) -> Iterator[tuple[Incident, Event]]:
        """Draw the incidents that begin in a block.

        Args:
            rng: What they are drawn from.
            first: The block's first sample [samples].
            flow: `[samples, counters]` as of `profile`.

        Yields:
            Incidents, and the event that each is until nine tenths of the flow are back.
        """
        each = self.incidents_per_day / self.counters * self.interval_s / DAY
        starts = rng.poisson(each * flow / MEAN_FLOW)
        for at, counter in np.argwhere(starts).tolist():
            lost, cleared, pace = rng.uniform(0.6, 0.95), rng.exponential(2700.0), 900.0
            begin = first + at
            until = [cleared + pace * math.log(lost / share) for share in (0.1, 0.01)]
            labelled, length = (math.ceil(span / self.interval_s) for span in until)
            since = np.arange(length) * self.interval_s
            left = 1 - lost * np.exp(-np.maximum(since - cleared, 0.0) / pace)
            start, over = self.times(np.array([begin, begin + labelled])).tolist()
            yield (
                Incident(begin, counter, left),
                Event(start, over, "incident", 1, counter),
            )

    def draw_faults(
        self, rng: np.random.Generator, first: int, values: np.ndarray
    ) -> Iterator[tuple[Fault, Event]]:
        """Draw the faults that begin in a block.

        Args:
            rng: What they are drawn from.
            first: The block's first sample [samples].
            values: `[samples, counters]` what a counter may be stuck at.

        Yields:
            Faults, and the event that each is.
        """
        size = len(values)
        for _ in range(rng.poisson(self.faults_per_day * size * self.interval_s / DAY)):
            at, counter = int(rng.integers(size)), int(rng.integers(self.counters))
            kind, label = FAULTS[rng.integers(len(FAULTS))]
            length = 3 + round(rng.exponential(2 * 3600.0) / self.interval_s)
            readings = {"stuck_zero": 0.0, "stuck_value": float(values[at, counter])}
            begin, end = first + at, first + at + length
            start, over = self.times(np.array([begin, end])).tolist()
            yield (
                Fault(begin, end, counter, readings.get(kind, math.nan)),
                Event(start, over, kind, label, counter),
            )


def profile(time: np.ndarray, inward: np.ndarray | Sequence[float]) -> np.ndarray:
    """Return the flow that the hour and the day of the week lead to.

    Args:
        time: `[samples]` since the epoch [s], read as UTC.
        inward: `[counters]` share of the commuters that pass in the morning; the others pass in
            the afternoon.

    Returns:
        `[samples, counters]` as a share of the flow in a rush hour, positive.
    """
    inward = np.asarray(inward)
    hour = (np.asarray(time)[:, None] / 3600) % 24
    weekend = (np.asarray(time)[:, None] // DAY + 3) % 7 >= 5  # the epoch was a Thursday

    def hump(centre: float, width: float) -> np.ndarray:
        return np.exp(-0.5 * (((hour - centre + 12) % 24 - 12) / width) ** 2)

    commuters = 1.3 * (inward * hump(7.75, 1.0) + (1 - inward) * hump(17.0, 1.5))
    working = 0.04 + 0.35 * hump(12.5, 3.5) + commuters
    resting = 0.05 + 0.42 * hump(14.5, 4.0)
    return np.where(weekend, resting, working)


def overlap(first: int, length: int, start: int, size: int) -> tuple[slice, slice]:
    """Return where a stretch of samples lies in a block, and that part of the stretch.

    Args:
        first: First sample of the stretch.
        length: Of the stretch [samples].
        start: First sample of the block.
        size: Of the block [samples].
    """
    begin = min(max(first, start), start + size)
    end = max(min(first + length, start + size), begin)
    return slice(begin - start, end - start), slice(begin - first, end - first)


# Of a whole week, so that incidents come as often as asked for, but in busy hours.
MEAN_FLOW = float(np.mean(profile(np.arange(0.0, 7 * DAY, 600.0), (0.5,))))
