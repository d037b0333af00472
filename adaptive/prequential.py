"""Test, then train: the controller of the live loop over a recording, causally, in one pass.

What is computed for a sample uses it and earlier ones alone. Labels are shown when they become
known, never before.
"""

import time as clock
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from adaptive.controller import MANDATORY, Answer, Controller, Estimate
from adaptive.decision import Settings
from adaptive.feedback import Pending
from adaptive.governor import Governor
from sensors.sample import Feedback


class Label(NamedTuple):
    """What someone said of a moment."""

    time: float  # [s] the moment
    label: int  # 1: an event; 0: looked at, nothing
    duration: float  # [s]
    known: float  # [s] when it may be shown


class Results(NamedTuple):
    """The arrays of a replay, one row for each sample."""

    time: Float[np.ndarray, " rows"]  # [s]
    values: Float[np.ndarray, "rows channels"]
    forecast: Float[np.ndarray, "rows horizon channels"]
    score: Float[np.ndarray, " rows"]
    p_value: Float[np.ndarray, " rows"]
    alarm: Bool[np.ndarray, " rows"]
    event: Float[np.ndarray, " rows"]
    level: Int[np.ndarray, " rows"]
    latency: Float[np.ndarray, " rows"]  # [s]
    strength: Float[np.ndarray, " rows"]  # of an alarm, in [0, 1); repeats are 0
    spread: Float[np.ndarray, "rows channels"]  # usual error one step ahead


def empty(
    time: Float[np.ndarray, " rows"], values: Float[np.ndarray, "rows channels"], horizon: int
) -> Results:
    """Results that are yet to be filled in."""
    rows, channels = values.shape
    return Results(
        time,
        values,
        np.full((rows, horizon, channels), np.nan, np.float32),
        np.zeros(rows),
        np.ones(rows),
        np.zeros(rows, bool),
        np.full(rows, np.nan),
        np.full(rows, MANDATORY, np.int8),
        np.zeros(rows),
        np.zeros(rows),
        np.full((rows, channels), np.nan, np.float32),
    )


def replay_arrays(
    controller: Controller,
    time: Float[np.ndarray, " rows"],
    values: Float[np.ndarray, "rows channels"],
    *,
    level: int | None = None,
    block: int | None = None,
    deadline: float = 0.0,
    labels: Sequence[Label] = (),
    pace: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Results:
    """Take a recording through stream 0 of a controller that is warmed up.

    Args:
        controller: With one stream, as many channels as the recording, and nothing seen.
        time: When each sample was taken [s].
        values: NaN where missing, infinite values count as missing.
        level: Index of the level for every sample; None lets the governor choose, by measured
            cost and `deadline`, sample by sample.
        block: Samples in one compiled call; results do not depend on later ones in it. As many
            as lie between two gradient steps when None.
        deadline: From a sample's arrival [s], for the governor.
        labels: In the order of `known`.
        pace: Called with the row before each sample is taken, to wait until it is due.
        progress: Called with the number of rows done since it was called last.

    Returns:
        The results.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    results = empty(time, values, controller.horizon)
    labelled = Labelled(controller, time, labels)
    if level is None or pace is not None:
        answered = governed(controller, values, level, deadline, pace)
    else:
        answered = blockwise(controller, values, level, block)
    done = 0
    for row, (estimate, started) in enumerate(answered):
        labelled.show(row)
        answer = controller.settle(estimate, float(time[row]), values[row])
        store(results, row, answer, clock.perf_counter() - started)
        if progress and (row + 1 - done >= 1024 or row + 1 == len(values)):
            progress(row + 1 - done)
            done = row + 1
    return results


def blockwise(
    controller: Controller,
    values: Float[np.ndarray, "rows channels"],
    level: int,
    block: int | None,
) -> Iterator[tuple[Estimate, float]]:
    """Refine blocks of samples at one level, with a gradient step after each block when due.

    Yields:
        For each sample its estimate, and when its share of the block's time began.
    """
    size = block or controller.settings.learn_every_samples or 32
    for first in range(0, len(values), size):
        rows = values[first : first + size]
        start = clock.perf_counter()
        estimates = controller.refine(level, [controller.arrive(0, x) for x in rows])
        share = (clock.perf_counter() - start) / len(rows)
        for estimate in estimates:
            yield estimate, clock.perf_counter() - share
        learn(controller)


def governed(
    controller: Controller,
    values: Float[np.ndarray, "rows channels"],
    level: int | None,
    deadline: float,
    pace: Callable[[int], None] | None,
) -> Iterator[tuple[Estimate, float]]:
    """Refine sample by sample, at one level or at the governor's choice; as the live loop does."""
    governor = Governor(Settings())
    governor.init(controller.engine.costs())
    for row, x in enumerate(values):
        if pace:
            pace(row)
        start = clock.perf_counter()
        sample = controller.arrive(0, x)
        mandatory = controller.mandatory(sample)
        before, chosen = clock.perf_counter(), level
        if chosen is None:
            chosen = governor.decide(deadline - (before - start), 1, before).level
        (refined,) = controller.refine(max(chosen, 0), [sample])
        # What is expected to be late the live loop has answered before.
        estimate = mandatory if chosen == MANDATORY else refined
        now = clock.perf_counter()
        governor.observe(max(chosen, 0), 1, now - before, now)
        yield estimate, start
        learn(controller)


def learn(controller: Controller) -> None:
    """Take a gradient step if one is due."""
    stream = controller.learning_due()
    if stream is not None:
        controller.learn(stream)


class Labelled:
    """Shows labels to the controller as soon as they are known."""

    def __init__(
        self, controller: Controller, time: Float[np.ndarray, " rows"], labels: Sequence[Label]
    ):
        self.controller, self.time = controller, time
        self.waiting = sorted(labels, key=lambda label: label.known)[::-1]
        self.any = bool(self.waiting)
        self.pending = Pending(controller.settings.feedback_samples)

    def show(self, row: int) -> None:
        """Show what is known when sample `row` arrives."""
        if not self.any:
            return
        now = float(self.time[row])
        found = self.pending.due()
        while self.waiting and self.waiting[-1].known <= now:
            label = self.waiting.pop()
            found.append(self.pending.pair(Feedback("", label.time, label.label, label.duration)))
        for match in found:
            self.controller.label(0, match.indices, match.label)
        self.pending.seen(row, now)


def store(results: Results, row: int, answer: Answer, latency: float) -> None:
    """Write one answer into its row."""
    estimate = answer.estimate
    results.forecast[row] = estimate.forecast
    results.spread[row] = estimate.spread[0]
    results.level[row] = estimate.level
    results.latency[row] = latency
    for name in ("score", "p_value", "alarm", "event", "strength"):
        getattr(results, name)[row] = getattr(answer, name)
