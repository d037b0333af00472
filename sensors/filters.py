"""Frequency filters: second-order sections that carry their state from sample to sample."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy

from sensors.sample import Sample, Stream


class Sections(NamedTuple):
    """A cascade of second-order sections on its way through a stream."""

    sos: np.ndarray  # [sections, 6] as of `scipy.signal`
    z: np.ndarray  # [sections, 2, channels] delays
    last: np.ndarray  # [channels] newest finite input; NaN before the first


def sections_init(sos: np.ndarray, channels: int) -> Sections:
    """Return a filter that has not seen anything.

    Args:
        sos: `[sections, 6]` as of `scipy.signal`.
        channels: How many channels it filters, each on its own.
    """
    return Sections(sos, np.zeros((len(sos), 2, channels)), np.full(channels, np.nan))


def sections_step(state: Sections, x: np.ndarray) -> tuple[Sections, np.ndarray]:
    """Filter the next value of each channel.

    Each channel starts as if its first finite value had always been there. Where a value is not
    finite, the filter goes on with the last one that was, and puts out NaN.

    Args:
        state: The filter; it is not changed.
        x: `[channels]`.

    Returns:
        The filter afterwards, and what comes out, `[channels]`.

    References:
        Direct form II transposed, as `scipy.signal.sosfilt`, which spends most of its time on
        checks when it is given one sample at a time.
    """
    finite = np.isfinite(x)
    z, last = state.z, state.last
    new = finite & np.isnan(last)
    if new.any():
        z = np.where(new, scipy.signal.sosfilt_zi(state.sos)[:, :, None] * np.where(new, x, 0.0), z)
    last = np.where(finite, x, last)
    y = np.where(np.isnan(last), 0.0, last)  # silence until a channel starts
    after = np.empty_like(z)
    for n, (b0, b1, b2, _, a1, a2) in enumerate(state.sos.tolist()):
        out = b0 * y + z[n, 0]
        after[n, 0] = b1 * y - a1 * out + z[n, 1]
        after[n, 1] = b2 * y - a2 * out
        y = out
    return Sections(state.sos, after, last), np.where(finite, y, np.nan)


def bandpass_sections(low: float | None, high: float | None, order: int, rate: float) -> np.ndarray:
    """Design a Butterworth filter.

    Args:
        low: Lower edge [Hz]; None for a low-pass.
        high: Upper edge [Hz]; None for a high-pass.
        order: Of each edge.
        rate: Sampling rate [Hz].

    Returns:
        `[sections, 6]`.
    """
    if low is None:
        kind, edges = "lowpass", high
    elif high is None:
        kind, edges = "highpass", low
    else:
        kind, edges = "bandpass", (low, high)
    return np.asarray(scipy.signal.butter(order, edges, kind, fs=rate, output="sos"))


def sampling_rate(stream: Stream, wanted_by: str, *edges: float | None) -> float:
    """Return the sampling rate of a stream, if a filter with these edges can work at it [Hz].

    Raises:
        ValueError: It is unknown, or an edge is beyond half of it.
    """
    if stream.sampling_rate is None:
        raise ValueError(
            f"stream {stream.name!r}: {wanted_by} needs the sampling rate, and it is not known. "
            "Set sampling_rate_hz in the source, or put a resample transform before it."
        )
    for edge in edges:
        if edge is not None and edge >= stream.sampling_rate / 2:
            raise ValueError(
                f"stream {stream.name!r}: {wanted_by} at {edge:g} Hz needs a sampling rate of more "
                f"than {2 * edge:g} Hz, the stream has {stream.sampling_rate:g} Hz. Lower the "
                "frequency, or leave the filter out: there is nothing to filter up there."
            )
    return stream.sampling_rate


@dataclass(frozen=True)
class Bandpass:
    """Lets a band of frequencies through; a high-pass or low-pass with one edge only.

    Non-finite values: see `sections_step`. Gaps in time are not noticed; put a fill or resample
    transform before it.

    Args:
        low_hz: Lower edge; none for a low-pass.
        high_hz: Upper edge; none for a high-pass.
        order: Of the Butterworth filter, at each edge.

    Raises:
        ValueError: The edges are out of order, or there is none.
    """

    low_hz: float | None = None
    high_hz: float | None = None
    order: int = 2

    def __post_init__(self):
        edges = [edge for edge in (self.low_hz, self.high_hz) if edge is not None]
        if not edges or min(edges) <= 0 or sorted(set(edges)) != edges:
            raise ValueError(
                "a band-pass needs low_hz, high_hz, or both with 0 < low_hz < high_hz, got "
                f"low_hz={self.low_hz}, high_hz={self.high_hz}"
            )
        if self.order < 1:
            raise ValueError(f"the order of a band-pass must be at least 1, got {self.order}")

    def output(self, stream: Stream) -> Stream:
        """Return the stream, unchanged; see `Transform`."""
        sampling_rate(stream, "a band-pass", self.low_hz, self.high_hz)
        return stream

    def init(self, stream: Stream) -> Sections:
        """Return the state before the first sample; see `Transform`."""
        rate = sampling_rate(stream, "a band-pass", self.low_hz, self.high_hz)
        sos = bandpass_sections(self.low_hz, self.high_hz, self.order, rate)
        return sections_init(sos, len(stream.channels))

    def step(self, state: Sections, sample: Sample) -> tuple[Sections, list[Sample]]:
        """Filter the next sample; see `Transform`."""
        state, y = sections_step(state, sample.values)
        return state, [sample._replace(values=y)]


@dataclass(frozen=True)
class Notch:
    """Takes one frequency out, such as the hum of the mains.

    Args:
        frequency_hz: What to take out.
        quality: Frequency divided by the width of the notch at -3 dB.

    Raises:
        ValueError: An option is not positive.
    """

    frequency_hz: float = 50.0
    quality: float = 30.0

    def __post_init__(self):
        if not (self.frequency_hz > 0 and self.quality > 0):
            raise ValueError(
                "a notch needs frequency_hz and quality above 0, got "
                f"frequency_hz={self.frequency_hz}, quality={self.quality}"
            )

    def output(self, stream: Stream) -> Stream:
        """Return the stream, unchanged; see `Transform`."""
        sampling_rate(stream, "a notch", self.frequency_hz)
        return stream

    def init(self, stream: Stream) -> Sections:
        """Return the state before the first sample; see `Transform`."""
        rate = sampling_rate(stream, "a notch", self.frequency_hz)
        sos = scipy.signal.tf2sos(*scipy.signal.iirnotch(self.frequency_hz, self.quality, fs=rate))
        return sections_init(sos, len(stream.channels))

    def step(self, state: Sections, sample: Sample) -> tuple[Sections, list[Sample]]:
        """Filter the next sample; see `Transform`."""
        state, y = sections_step(state, sample.values)
        return state, [sample._replace(values=y)]
