"""What arrives from a sensor: samples, feedback about them, and what had to be rejected."""

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class Unavailable(Exception):
    """The far side is away; trying again later may help."""


class Stream(NamedTuple):
    """What is known of a stream before its first sample."""

    name: str
    channels: tuple[str, ...]
    units: tuple[str, ...]  # one for each channel, "" where unknown
    sampling_rate: float | None = None  # [Hz]; None if unknown or irregular


class Sample(NamedTuple):
    """All channels of one stream at one moment."""

    stream: str
    sequence: int  # counts up by one with each sample of the stream, at its origin
    time: float  # [s] since the epoch; since the start for a recording without a date
    values: np.ndarray  # [channels] float64, in the stream's units; NaN is a missing value
    filled: np.ndarray | None = None  # [channels] bool: filled in by a transform, not measured


class Feedback(NamedTuple):
    """What someone, or the world, says about a moment of a stream; it may come at any time."""

    stream: str
    time: float  # [s] on the clock of the samples: the moment that it is about
    label: int  # 1: an event; 0: looked at, nothing
    duration: float = 0.0  # [s] how long the event, or the stretch that was looked at, lasts


class Rejected(NamedTuple):
    """Something arrived that could not be made a sample or feedback; it is counted, never lost."""

    stream: str  # "" if not known
    reason: str  # a short constant, for the counter: "malformed", "unknown_stream", ...
    detail: str  # one line for the log: what was wanted, what came


Item = Sample | Feedback | Rejected


@runtime_checkable
class Source(Protocol):
    """Where samples come from.

    Iterating waits for the sensors and yields items in the order of their arrival. It ends when
    the source has no more, and raises `Unavailable` when the far side is away for good or must be
    tried anew by the caller. Feedback and rejects come along the same way.

    A source whose samples come only as fast as they are taken says so by an attribute `waits` that
    is true: it is not read before the models are ready.
    """

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that this source delivers, known before the first sample."""
        ...

    def __aiter__(self) -> AsyncIterator[Item]:
        """Yield what arrives."""
        ...

    def answered(self, sample: Sample) -> None:
        """Take note that `sample` has been answered (or shed and counted), once for each sample.

        A source that acknowledges to its far side does so here; for others it does nothing.
        """
        ...
