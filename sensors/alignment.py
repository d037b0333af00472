"""Bringing samples onto a regular grid: resampling, and filling what is missing."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sensors.sample import Sample, Stream


def mask(sample: Sample) -> np.ndarray:
    """Return `[channels]` bool: which values were filled in, for a sample that may not say."""
    return np.zeros(len(sample.values), bool) if sample.filled is None else sample.filled


class ResampleState(NamedTuple):
    """Where a resampler stands."""

    period: float  # [s] of the grid
    max_gap: float  # [s]
    anchor: float  # [s] time of the first point of the grid; NaN before the first sample
    points: int  # [samples] of the grid that are out, since the anchor
    sequence: int  # of the next sample
    time: float  # [s] of the newest input
    values: np.ndarray  # [channels] the newest input
    filled: np.ndarray  # [channels] bool, of the newest input


@dataclass(frozen=True)
class Resample:
    """Brings a stream onto a uniform grid, by linear interpolation between neighbours.

    The grid starts at the first sample. A point of it comes out with the first input that is not
    earlier. After a gap the grid starts anew, so that nothing is made up over long gaps. Its
    samples are numbered anew, from 0, through all gaps. Inputs that are not later than the one
    before are left out. A missing value makes the points next to it missing. To go to a lower
    rate, put a low-pass below half of it before, or what is above will be folded into the band.

    Args:
        rate_hz: Of the grid.
        max_gap_s: Longest gap to interpolate over; if left out, ten periods of the input or of
            the grid, whichever is longer.

    Raises:
        ValueError: An option is not positive.
    """

    rate_hz: float
    max_gap_s: float | None = None

    def __post_init__(self):
        if not self.rate_hz > 0:
            raise ValueError(f"rate_hz of a resample must be positive, got {self.rate_hz}")
        if self.max_gap_s is not None and not self.max_gap_s > 0:
            raise ValueError(f"max_gap_s of a resample must be positive, got {self.max_gap_s}")

    def output(self, stream: Stream) -> Stream:
        """Return the stream at the new rate; see `Transform`."""
        if self.max_gap_s is not None and stream.sampling_rate is not None:
            period = 1 / stream.sampling_rate
            if self.max_gap_s < period:
                raise ValueError(
                    f"stream {stream.name!r}: samples are {period:g} s apart, resample with "
                    f"max_gap_s={self.max_gap_s:g} would take each for a gap. Raise max_gap_s."
                )
        return stream._replace(sampling_rate=self.rate_hz)

    def init(self, stream: Stream) -> ResampleState:
        """Return the state before the first sample; see `Transform`."""
        self.output(stream)
        channels = len(stream.channels)
        gap = self.max_gap_s or 10 / min(self.rate_hz, stream.sampling_rate or self.rate_hz)
        nothing = np.full(channels, np.nan), np.zeros(channels, bool)
        return ResampleState(1 / self.rate_hz, gap, math.nan, 0, 0, math.nan, *nothing)

    def step(self, state: ResampleState, sample: Sample) -> tuple[ResampleState, list[Sample]]:
        """Put out the points of the grid up to this sample; see `Transform`."""
        before, now = state.time, sample.time
        filled = mask(sample)
        if now <= before:
            return state, []
        newest = np.where(np.isfinite(sample.values), sample.values, np.nan)
        rounding = 4 * math.ulp(max(abs(now), 1.0))
        if math.isnan(before) or now - before > state.max_gap + rounding:
            state = state._replace(anchor=now, points=0)
            before = -math.inf
        samples, points = [], state.points
        # Multiplied out, so that no rounding adds up.
        while (at := state.anchor + points * state.period) <= now + rounding:
            if abs(at - now) <= rounding:
                values, made_up = newest, filled
            else:
                weight = (at - before) / (now - before)
                values = state.values + weight * (newest - state.values)
                made_up = filled | state.filled
            number = state.sequence + len(samples)
            samples.append(
                Sample(sample.stream, number, at, values, made_up if made_up.any() else None)
            )
            points += 1
        after = state._replace(
            points=points,
            sequence=state.sequence + len(samples),
            time=now,
            values=newest,
            filled=filled,
        )
        return after, samples


class FillState(NamedTuple):
    """What there is to fill with."""

    period: float  # [s] between samples; NaN if unknown
    limit: float  # [s] how long a value is held
    values: np.ndarray  # [channels] newest measured values; NaN before the first
    measured: np.ndarray  # [channels] their times [s]
    time: float  # [s] of the newest input; NaN before the first
    sequence: int  # of the newest output
    shift: int  # output less input, of the sequence numbers


@dataclass(frozen=True)
class Fill:
    """Fills missing values and, where the sampling rate is known, missing moments.

    The last measured value is held, and marked as filled in, for so long and no longer; then
    missing values stay NaN and missing moments stay away. Sequence numbers stay what they were
    where the sensor counted the lost moments itself; else they are shifted by the moments that
    were put in. They always rise by one, but over gaps that stay.

    Args:
        max_samples: How many samples a value is held; for streams with a known rate.
        max_gap_s: How long a value is held; in place of `max_samples`.

    Raises:
        ValueError: An option is not positive.
    """

    max_samples: int = 5
    max_gap_s: float | None = None

    def __post_init__(self):
        if self.max_samples < 1:
            raise ValueError(f"max_samples of a fill must be at least 1, got {self.max_samples}")
        if self.max_gap_s is not None and not self.max_gap_s > 0:
            raise ValueError(f"max_gap_s of a fill must be positive, got {self.max_gap_s}")

    def output(self, stream: Stream) -> Stream:
        """Return the stream, unchanged; see `Transform`."""
        if stream.sampling_rate is None and self.max_gap_s is None:
            raise ValueError(
                f"stream {stream.name!r}: how long max_samples={self.max_samples} are is not "
                "known without a sampling rate. Set max_gap_s in the fill transform instead, or "
                "sampling_rate_hz in the source."
            )
        return stream

    def init(self, stream: Stream) -> FillState:
        """Return the state before the first sample; see `Transform`."""
        self.output(stream)
        period = 1 / stream.sampling_rate if stream.sampling_rate else math.nan
        # Half a period more, since samples are not quite on time.
        limit = self.max_gap_s if self.max_gap_s is not None else (self.max_samples + 0.5) * period
        nothing = np.full(len(stream.channels), np.nan)
        return FillState(period, limit, nothing, nothing, math.nan, -1, 0)

    def step(self, state: FillState, sample: Sample) -> tuple[FillState, list[Sample]]:
        """Put out the moments missed since the last sample, and this one; see `Transform`."""
        gap = sample.time - state.time
        samples, sequence = [], state.sequence
        if gap > 1.5 * state.period:  # no NaN is
            whole = round(gap / state.period)
            for n in range(1, min(whole, math.floor(state.limit / state.period) + 1)):
                sequence += 1
                blank = np.full(len(sample.values), np.nan)
                time = state.time + n * gap / whole
                samples.append(hold(state, Sample(sample.stream, sequence, time, blank)))
        number = sample.sequence + state.shift
        if not math.isnan(state.time):
            number = max(number, sequence + 1)
        samples.append(hold(state, sample._replace(sequence=number)))
        finite = np.isfinite(sample.values)
        after = state._replace(
            values=np.where(finite, sample.values, state.values),
            measured=np.where(finite, sample.time, state.measured),
            time=sample.time,
            sequence=number,
            shift=number - sample.sequence,
        )
        return after, samples


def hold(state: FillState, sample: Sample) -> Sample:
    """Return the sample with its missing values filled, as far as the last ones are recent."""
    missing = ~np.isfinite(sample.values)
    if not missing.any():
        return sample
    rounding = 4 * math.ulp(max(abs(sample.time), 1.0))
    fill = missing & (sample.time - state.measured <= state.limit + rounding)
    values = np.where(fill, state.values, np.where(missing, np.nan, sample.values))
    return sample._replace(values=values, filled=mask(sample) | fill)
