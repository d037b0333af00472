"""What is computed from samples: standard scores, principal components, appended features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sensors.filters import (
    Sections,
    bandpass_sections,
    sampling_rate,
    sections_init,
    sections_step,
)
from sensors.sample import Sample, Stream

START = 16  # [samples] from which `Standardise` takes its first location and scale


class StandardiseState(NamedTuple):
    """What is usual in each channel."""

    first: np.ndarray  # [START, channels] the first values seen, NaN where there is none yet
    seen: np.ndarray  # [channels] int, values learned from
    location: np.ndarray  # [channels]
    scale: np.ndarray  # [channels]; 0 until two values differ
    largest: np.ndarray  # [channels] scale that there has been, forgotten slowly


@dataclass(frozen=True)
class Standardise:
    """Expresses values in robust standard deviations from what is usual by now.

    With `r = (x - location) / scale` and gain `g = 1 / memory_samples`,

        scale^2  <- g rho(r) scale^2 + (1 - g) scale^2
        location <- location + g psi(r) scale

    where Huber's psi cuts off at 2 and the biweight rho, scaled to be 1 on average for normal
    values, is constant beyond 2: an outlier moves neither much. A value is measured against what
    was usual before it. The first 16 values are measured against their median and median absolute
    deviation (their mean one, if that is 0). Zero is put out until two values differ. The scale
    never falls below a twentieth of what it was in the last hundred memories, so that a dead
    sensor does not make everything after it infinite. Missing values stay missing; neither they
    nor filled ones are learned from.

    Args:
        memory_samples: How many values are remembered, at least 16.

    Raises:
        ValueError: `memory_samples` is too small.

    References:
        Gelper, Fried & Croux, Robust forecasting with exponential and Holt-Winters smoothing,
        J. Forecasting 29(3), 2010, without the trend; the lower bound is ours.
    """

    memory_samples: float = 1000

    def __post_init__(self):
        if not self.memory_samples >= START:
            raise ValueError(
                f"memory_samples of a standardise must be at least {START}, got "
                f"{self.memory_samples}: a scale out of fewer values is noise."
            )

    def output(self, stream: Stream) -> Stream:
        """Return the stream without units; see `Transform`."""
        return stream._replace(units=("",) * len(stream.channels))

    def init(self, stream: Stream) -> StandardiseState:
        """Return the state before the first sample; see `Transform`."""
        channels = len(stream.channels)
        zero = np.zeros(channels)
        first = np.full((START, channels), np.nan)
        return StandardiseState(first, np.zeros(channels, int), zero, zero, zero)

    def step(
        self, state: StandardiseState, sample: Sample
    ) -> tuple[StandardiseState, list[Sample]]:
        """Standardise the next sample, then learn from it; see `Transform`."""
        x, gain = sample.values, 1 / self.memory_samples
        finite = np.isfinite(x)
        learn = finite if sample.filled is None else finite & ~sample.filled
        # As long as a channel stands still there is nothing to learn, and it costs nothing.
        early = learn & ((state.seen < START) | ((state.scale == 0) & (x != state.location)))
        if early.any():
            state = start(state, x, early)
        known = state.scale > 0
        scale = np.where(known, state.scale, 1.0)
        r = np.where(finite & known, (x - state.location) / scale, 0.0)
        y = np.where(finite, r, np.nan)

        running = learn & known & (state.seen >= START)
        # 2.52 makes rho 1 on average for normal values cut off at 2.
        rho = 2.52 * (1 - (1 - np.minimum((r / 2) ** 2, 1.0)) ** 3)
        wider = scale * np.sqrt(1 - gain + gain * rho)
        largest = np.maximum(state.largest * (1 - gain / 100), wider)
        moved = state.location + gain * np.clip(r, -2, 2) * scale
        after = StandardiseState(
            state.first,
            state.seen + learn,
            np.where(running, moved, state.location),
            np.where(running, np.maximum(wider, 0.05 * largest), state.scale),
            np.where(running, largest, state.largest),
        )
        return after, [sample._replace(values=y)]


def start(state: StandardiseState, x: np.ndarray, early: np.ndarray) -> StandardiseState:
    """Take location and scale of some channels from their first values.

    Args:
        state: The state.
        x: `[channels]` the next values.
        early: `[channels]` bool: which channels; their next values are finite.

    Returns:
        The state with `first`, `location`, `scale` and `largest` renewed.
    """
    rolled = np.concatenate([state.first[1:], x[None]])
    first = np.where(early, rolled, state.first)
    values = first[:, early]  # at least one in each column
    location, scale = state.location.copy(), state.scale.copy()
    location[early] = np.nanmedian(values, axis=0)
    away = np.abs(values - location[early])
    middle, mean = 1.4826 * np.nanmedian(away, axis=0), 1.2533 * np.nanmean(away, axis=0)
    scale[early] = np.where(middle > 0, middle, mean)
    largest = np.where(early, scale, state.largest)
    return state._replace(first=first, location=location, scale=scale, largest=largest)


class PcaState(NamedTuple):
    """Principal components on their way."""

    seen: int  # samples learned from
    mean: np.ndarray  # [channels]
    vectors: np.ndarray  # [components, channels], each as long as its variance


@dataclass(frozen=True)
class Pca:
    """Replaces the channels by their first principal components, learned on the way.

    With `u` the sample less its running mean, for one component after the other

        v <- (1 - (1 + l) / n) v + (1 + l) / n (u . v / |v|) u,   y = u . v / |v|,
        u <- u - y v / |v|

    where `l` is the amnesic parameter and `n` the number of samples. A sample is projected before
    it is learned from; a component is 0 until there are as many samples to tell its direction. A
    missing value counts as the mean of its channel and its sample is not learned from; a sample
    that misses all makes NaN. Directions are orthogonal in the limit only: to about 0.02 after
    some thousand samples. Scale the channels before, if their units differ.

    Args:
        components: How many, up to the number of channels.
        memory_samples: Up to where `n` counts, so that components go on adapting.
        amnesic: `l`, how much more newer samples count.

    Raises:
        ValueError: An option is out of range.

    References:
        Weng, Zhang & Hwang, Candid covariance-free incremental principal component analysis,
        IEEE Trans. PAMI 25(8), 2003. The bound on `n` is ours.
    """

    components: int
    memory_samples: int = 10_000
    amnesic: float = 2.0

    def __post_init__(self):
        if self.components < 1:
            raise ValueError(f"components of a pca must be at least 1, got {self.components}")
        if self.amnesic < 0 or self.memory_samples <= self.amnesic + 1:
            raise ValueError(
                "a pca needs amnesic >= 0 and memory_samples > amnesic + 1, got "
                f"amnesic={self.amnesic}, memory_samples={self.memory_samples}"
            )

    def output(self, stream: Stream) -> Stream:
        """Return the stream of the components; see `Transform`."""
        if self.components > len(stream.channels):
            raise ValueError(
                f"stream {stream.name!r}: a pca of {self.components} components needs as many "
                f"channels, there are {len(stream.channels)}. Lower components."
            )
        unit = stream.units[0] if len(set(stream.units)) == 1 else ""
        names = tuple(f"pca-{n + 1}" for n in range(self.components))
        return stream._replace(channels=names, units=(unit,) * self.components)

    def init(self, stream: Stream) -> PcaState:
        """Return the state before the first sample; see `Transform`."""
        self.output(stream)
        channels = len(stream.channels)
        return PcaState(0, np.zeros(channels), np.zeros((self.components, channels)))

    def step(self, state: PcaState, sample: Sample) -> tuple[PcaState, list[Sample]]:
        """Project the next sample, then learn from it; see `Transform`."""
        finite = np.isfinite(sample.values)
        x = np.where(finite, sample.values, state.mean)
        u = x - state.mean if state.seen else np.zeros_like(x)
        y = directions(state.vectors) @ u if finite.any() else np.full(self.components, np.nan)
        filled = sample.filled is not None and bool(sample.filled.any())
        out = sample._replace(values=y, filled=np.full(self.components, True) if filled else None)
        if not finite.all():
            return state, [out]

        n = min(state.seen + 1, self.memory_samples)
        mean = state.mean + (x - state.mean) / n
        u, vectors = x - mean, state.vectors.copy()
        gain = (1 + self.amnesic) / n if n > self.amnesic + 1 else 1 / n
        for v in vectors:
            length = math.sqrt(v @ v)
            if length == 0:
                v[:] = u  # no direction yet: the first sample that leaves something gives it
                break
            along = v / length
            score = u @ along
            v += gain * (score * u - v)
            # Deflate by the direction as it is now, or the next component keeps some of this one.
            along = v / (math.sqrt(v @ v) or 1.0)
            u = u - (u @ along) * along
        return PcaState(state.seen + 1, mean, vectors), [out]


def directions(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors `[components, channels]` at length one; those of length zero stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


class FeaturesState(NamedTuple):
    """What features need of the past."""

    past: np.ndarray  # [samples, channels] newest inputs, oldest first; NaN before the first
    bands: tuple[Sections, ...]  # a band-pass for each band
    power: np.ndarray  # [bands, channels]
    gain: float  # of the average of the power


@dataclass(frozen=True)
class Features:
    """Appends to the channels what is computed from each of them.

    In this order: differences of order 1 and up; details of the undecimated causal Haar wavelet
    transform, finest first, where with `s_0` the channel

        s_j[n] = (s_{j-1}[n] + s_{j-1}[n - 2^(j-1)]) / 2,   detail_j[n] = s_{j-1}[n] - s_j[n];

    and the power in each band: band-passed, squared, exponentially averaged. All start as if the
    first finite value had always been there. Where a value is missing, its features are, and the
    last finite value stands in for it in what features of later samples look back at.

    Args:
        differences: Highest order.
        haar_levels: How many levels of detail, up to 16; the coarsest spans `2 ** haar_levels`
            samples.
        bands_hz: Lower and upper edge of each band.
        power_memory_s: Time constant of the average of the power.

    Raises:
        ValueError: An option is out of range.

    References:
        Renaud, Starck & Murtagh, Wavelet-based combined signal filtering and prediction, IEEE
        Trans. SMC-B 35(6), 2005: the causal Haar transform.
    """

    differences: int = 1
    haar_levels: int = 0
    bands_hz: Sequence[Sequence[float]] = ()
    power_memory_s: float = 1.0

    def __post_init__(self):
        bands = tuple((float(low), float(high)) for low, high in self.bands_hz)
        object.__setattr__(self, "bands_hz", bands)  # a TOML file has lists
        if self.differences < 0 or not 0 <= self.haar_levels <= 16:
            raise ValueError(
                "features need differences >= 0 and haar_levels of 0 to 16, got "
                f"differences={self.differences}, haar_levels={self.haar_levels}"
            )
        if not all(0 < low < high for low, high in bands):
            raise ValueError(f"each of bands_hz must be [low, high], 0 < low < high, got {bands}")
        if not self.power_memory_s > 0:
            raise ValueError(f"power_memory_s must be positive, got {self.power_memory_s}")

    def output(self, stream: Stream) -> Stream:
        """Return the stream with the appended channels; see `Transform`."""
        if self.bands_hz:
            sampling_rate(stream, "band power", *(high for _, high in self.bands_hz))
        orders = [f"diff{n + 1}" for n in range(self.differences)]
        orders += [f"haar{n + 1}" for n in range(self.haar_levels)]
        bands = [f"{low:g}-{high:g}Hz" for low, high in self.bands_hz]
        names = [f"{name}:{kind}" for kind in orders + bands for name in stream.channels]
        squares = tuple(f"({unit})^2" if unit else "" for unit in stream.units)
        return stream._replace(
            channels=(*stream.channels, *names),
            units=stream.units * (1 + len(orders)) + squares * len(bands),
        )

    def init(self, stream: Stream) -> FeaturesState:
        """Return the state before the first sample; see `Transform`."""
        self.output(stream)
        channels, rate = len(stream.channels), stream.sampling_rate or math.nan
        span = max(self.differences, 2**self.haar_levels - 1)
        bands = (bandpass_sections(low, high, 2, rate) for low, high in self.bands_hz)
        return FeaturesState(
            np.full((span, channels), np.nan),
            tuple(sections_init(sos, channels) for sos in bands),
            np.zeros((len(self.bands_hz), channels)),
            1 - math.exp(-1 / (rate * self.power_memory_s)),
        )

    def step(self, state: FeaturesState, sample: Sample) -> tuple[FeaturesState, list[Sample]]:
        """Append the features to the next sample; see `Transform`."""
        x = sample.values
        finite = np.isfinite(x)
        before = state.past[-1] if len(state.past) else x
        held = np.where(finite, x, before)
        past = np.where(np.isnan(state.past), held, state.past)  # before the first: as the first
        window = np.concatenate([past, held[None]])
        parts = [np.where(finite, x, np.nan)]
        rows = window[len(window) - 1 - self.differences :]
        for _ in range(self.differences):
            rows = np.diff(rows, axis=0)
            parts.append(np.where(finite, rows[-1], np.nan))
        if self.haar_levels:
            sums = np.cumsum(window[::-1], axis=0)
            lengths = 2 ** np.arange(self.haar_levels + 1)
            smooth = sums[lengths - 1] / lengths[:, None]  # [levels + 1, channels] of means
            parts += list(np.where(finite, smooth[:-1] - smooth[1:], np.nan))
        bands, power = [], state.power
        for n, band in enumerate(state.bands):
            band, y = sections_step(band, x)
            bands.append(band)
            average = power[n] + state.gain * (np.where(finite, y, 0.0) ** 2 - power[n])
            parts.append(np.where(finite, average, np.nan))
            # A missing moment has no power of its own: the average waits.
            power = np.where((np.arange(len(power)) == n)[:, None] & finite, average, power)
        filled = None if sample.filled is None else np.tile(sample.filled, len(parts))
        after = FeaturesState(window[1:], tuple(bands), power, state.gain)
        return after, [sample._replace(values=np.concatenate(parts), filled=filled)]
