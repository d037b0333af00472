"""A simulated stretch of a stream together with the truth about it."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np


class Event(NamedTuple):
    """Something that truly happened in a simulated stream."""

    start: float  # [s] on the clock of the samples
    end: float  # [s] the first moment that is no longer part of it
    kind: str  # "ectopic", "lead_off", "motion", "incident", "stuck_zero", ..., "quiet"
    label: int | None  # what an operator says of it, see `Feedback.label`; None: says nothing
    channel: int | None = None  # the one channel concerned, counted from 0; None: all


class Block(NamedTuple):
    """The next samples of a signal, and what begins in them."""

    values: np.ndarray  # [samples, channels] float64
    events: tuple[Event, ...]  # by start


class Recording(NamedTuple):
    """The beginning of a signal, as a whole."""

    time: np.ndarray  # [samples] float64 [s]
    values: np.ndarray  # [samples, channels] float64
    label: np.ndarray  # [samples] bool: inside an event that an operator would confirm
    events: tuple[Event, ...]  # by start; the last ones may end after the last sample


def record(blocks: Iterable[Block], times: Callable, samples: int) -> Recording:
    """Gather the first samples of a signal.

    Args:
        blocks: The signal, from its start; as much as is needed is taken.
        times: From sample numbers `[samples]` to their times `[samples]` [s].
        samples: How many, at least one [samples].

    Returns:
        The recording; shorter than asked for if the signal ends before.

    Raises:
        ValueError: `samples` is less than one.
    """
    if samples < 1:
        raise ValueError(f"a recording needs at least one sample, got samples={samples}")
    parts, events, count = [], [], 0
    for block in blocks:
        parts.append(block.values)
        events += block.events
        count += len(block.values)
        if count >= samples:
            break
    values = np.concatenate(parts)[:samples]
    time = times(np.arange(len(values)))
    begun = tuple(event for event in events if event.start <= time[-1])
    label = np.zeros(len(time), bool)
    for event in begun:
        if event.label == 1:
            label[slice(*np.searchsorted(time, (event.start, event.end)))] = True
    return Recording(time, values, label, begun)


def quiet_stretches(
    rng: np.random.Generator,
    events: Iterable[Event],
    *,
    begin: float,
    end: float,
    expected: float,
    length: float,
) -> Iterator[Event]:
    """Draw stretches in which nothing happens, for an operator to look at and find nothing.

    Args:
        rng: Where the stretches are drawn from; how much is drawn does not depend on `events`.
        events: All that happens between `begin` and `end`.
        begin: The earliest start [s].
        end: The latest end [s].
        expected: How many are drawn on average; those that meet an event are left out.
        length: How long each is [s].

    Yields:
        Events of kind "quiet" with label 0, by start.
    """
    starts = begin + np.sort(rng.random(rng.poisson(expected))) * (end - begin - length)
    for start in starts[starts >= begin]:
        if not any(event.start < start + length and start < event.end for event in events):
            yield Event(float(start), float(start + length), "quiet", 0)
