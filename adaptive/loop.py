"""The async loop: ingest, decide, score, publish, learn.

Each source has a task that takes samples in and gives them their mandatory answer at once; one
task refines, publishes and learns; each sink has a task that writes. A sample is counted when it
comes in and when every sink has taken its answer, so that

    received = full + mandatory + shed + in flight

holds at any moment, and a source may acknowledge a sample exactly when it has been answered.
"""

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import numpy as np

from adaptive.controller import MANDATORY, Controller, Estimate
from adaptive.feedback import Matches, Pending
from adaptive.governor import Governor
from adaptive.sinks import Result, Sink
from adaptive.telemetry import Counters, Quantiles, Rate
from sensors.sample import Feedback, Item, Rejected, Sample, Source, Stream, Unavailable
from sensors.transforms import Chain

LOG = logging.getLogger(__name__)
QUEUE = 4096  # samples of a bank that wait for the model; older ones are left out of its memory
OUTBOX = 65536  # results that wait for a sink; then the oldest are shed
BATCH = 256  # results that a sink is given at once
RETRY, RETRY_CAP = 0.5, 30.0  # [s] between attempts at a source or sink that is away
BACKWARDS = 8  # samples in a row whose time may go back before the clock is believed
REPORT_EVERY = 10.0  # [s] between two log lines about the same kind of reject
ALARMS_KEPT = 32


@dataclass
class Track:
    """One stream: where it comes from, what is known of it, what was counted."""

    stream: Stream  # behind the transforms
    bank: "Bank"
    number: int  # in the bank
    deadline: float  # [s] from arrival to answer
    chain: Chain
    state: Any  # of the transforms
    pending: Pending
    raw: Stream | None = None  # before the transforms
    counters: Counters = field(default_factory=Counters)
    latency: Quantiles = field(default_factory=Quantiles)  # [s] from arrival to published
    rate: Rate = field(default_factory=Rate)
    backwards: int = 0
    newest: float = -inf  # [s] time of the newest sample
    alarms: deque[Result] = field(default_factory=lambda: deque(maxlen=ALARMS_KEPT))
    level: int = MANDATORY
    loss: np.ndarray | None = None  # of the model and its parts, as in `model.KINDS`


@dataclass
class Bank:
    """A controller, its governor, and the samples it has yet to see, in the controller's order."""

    controller: Controller
    governor: Governor
    learn_cost: float  # [s]
    queue: deque["Waiting"] = field(default_factory=deque)
    unanswered: int = 0


@dataclass(eq=False)
class Origin:
    """A sample as its source gave it, until all that came of it is answered."""

    source: Source
    sample: Sample
    left: int


@dataclass(eq=False)
class Waiting:
    """A sample on its way."""

    track: Track
    sample: Sample
    origin: Origin
    arrival: float  # [s] on the loop's clock
    deadline: float  # [s] on the loop's clock
    mandatory: Estimate
    answered: bool = False
    sinks: int = 0  # that have yet to take the answer


class Loop:
    """Runs until the sources end, or until it is cancelled."""

    def __init__(
        self,
        sources: Sequence[Source],
        tracks: dict[str, Track],
        banks: Sequence[Bank],
        sinks: Sequence[Sink] = (),
        rng: random.Random | None = None,
    ):
        """Put together what `adaptive.config` made.

        Args:
            sources: Where samples come from.
            tracks: By the name of the stream; every stream of every source is there.
            banks: Their controllers are warmed up and their governors know the costs.
            sinks: Where results go.
            rng: Draws the waits between attempts.
        """
        self.sources, self.tracks, self.banks = sources, tracks, banks
        self.sinks = [(sink, deque[tuple[Waiting, Result]](), asyncio.Event()) for sink in sinks]
        self.rejected: dict[str, int] = {}  # what belongs to no stream, by reason
        self._rng = rng or random.Random()
        self._wake = asyncio.Event()
        self._reading = 0
        self._closing = False
        self._last_report: dict[str, float] = {}

    async def run(self) -> None:
        """Run; on return all samples are answered, and all answers are with the sinks.

        Raises:
            ExceptionGroup: Something failed that is not an absence of the far side: a bug, or a
                configuration that the far side refuses.
        """
        try:
            async with asyncio.TaskGroup() as group:
                writers = [group.create_task(self._write(*outlet)) for outlet in self.sinks]
                self._reading = len(self.sources)
                for source in self.sources:
                    group.create_task(self._ingest(source))
                await self._score()
                self._closing = True
                for _, _, ready in self.sinks:
                    ready.set()
                await asyncio.gather(*writers)
        finally:
            self._finish()
            for sink, _, _ in self.sinks:
                with contextlib.suppress(Exception):
                    await sink.close()

    # --- in -------------------------------------------------------------------------------------

    async def _ingest(self, source: Source) -> None:
        """Take items from one source; while it is away, try again with full jitter."""
        clock, failures = asyncio.get_running_loop().time, 0
        while True:
            started = clock()
            try:
                async for item in source:
                    self._take(source, item, clock())
                break
            except Unavailable as error:
                failures = 1 if clock() - started > RETRY_CAP else failures + 1
                if failures == 1:
                    LOG.warning("%s is away: %s", names(source), error)
                wait = self._rng.uniform(0, min(RETRY * 2 ** min(failures, 16), RETRY_CAP))
                await asyncio.sleep(wait)
        self._reading -= 1
        self._wake.set()

    def _take(self, source: Source, item: Item, now: float) -> None:
        if isinstance(item, Sample):
            self._take_sample(source, item, now)
        elif isinstance(item, Feedback):
            self._take_feedback(item)
        else:
            self._reject(item, now)

    def _reject(self, item: Rejected, now: float) -> None:
        track = self.tracks.get(item.stream)
        if track:
            track.counters.reject(item.reason)
        else:
            self.rejected[item.reason] = self.rejected.get(item.reason, 0) + 1
        key = f"{item.stream}/{item.reason}"
        if now - self._last_report.get(key, -inf) > REPORT_EVERY:
            self._last_report[key] = now
            LOG.warning("rejected (%s) %s: %s", item.reason, item.stream, item.detail)

    def _take_sample(self, source: Source, sample: Sample, now: float) -> None:
        track = self.tracks.get(sample.stream)
        problem = fault(track, sample)
        if track is None or problem:
            reason, detail = problem or ("unknown_stream", f"have {', '.join(self.tracks)}")
            self._reject(Rejected(sample.stream, reason, detail), now)
            source.answered(sample)
            return
        track.state, made = track.chain.step(track.state, sample)
        origin = Origin(source, sample, len(made))
        if not made:  # a transform has taken it in
            source.answered(sample)
        for one in made:
            self._queue(track, one, origin, now)
        self._wake.set()

    def _queue(self, track: Track, sample: Sample, origin: Origin, now: float) -> None:
        counters, bank = track.counters, track.bank
        if not counters.arrived(sample.sequence, sample.time):
            self._leave(origin)
            return
        if sample.time < track.newest:
            track.backwards += 1
            if track.backwards <= BACKWARDS:
                counters.give_up("time_backwards")
                self._leave(origin)
                return
            LOG.warning("%s: the sensor's clock went back, and stays there", sample.stream)
        track.newest, track.backwards = sample.time, 0
        track.rate.add(now)
        mandatory = bank.controller.arrive(track.number, sample.values, sample.filled)
        waiting = Waiting(track, sample, origin, now, now + track.deadline, mandatory)
        bank.queue.append(waiting)
        bank.unanswered += 1
        if len(bank.queue) > QUEUE:
            skipped = bank.queue.popleft()
            bank.controller.skip()
            if not skipped.answered:
                self._publish(skipped, skipped.mandatory, now)

    def _leave(self, origin: Origin) -> None:
        origin.left -= 1
        if origin.left <= 0:
            origin.source.answered(origin.sample)

    def _take_feedback(self, item: Feedback) -> None:
        track = self.tracks.get(item.stream)
        if track is None:
            self.rejected["unknown_stream"] = self.rejected.get("unknown_stream", 0) + 1
            return
        track.counters.heard("received")
        pending, late = track.pending, track.pending.late
        self._learn_label(track, pending.pair(item))
        if pending.late > late:
            track.counters.heard("too_late")

    def _learn_label(self, track: Track, match: Matches) -> None:
        if len(match.indices):
            track.counters.heard("paired")
            if track.bank.controller.label(track.number, match.indices, match.label):
                track.counters.heard("learned")

    # --- score ----------------------------------------------------------------------------------

    async def _score(self) -> None:
        """Answer what waits, earliest deadline first, until nothing more will come."""
        clock = asyncio.get_running_loop().time
        while True:
            banks = [bank for bank in self.banks if bank.queue]
            if not banks:
                if not self._reading:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            self._step(min(banks, key=urgency), clock)
            # Let samples in and results out before the next call, which nothing can interrupt.
            await asyncio.sleep(0)
            for bank in self.banks:
                self._learn(bank, clock)

    def _step(self, bank: Bank, clock: Callable[[], float]) -> None:
        """Answer or catch up on the head of a bank's queue."""
        now = clock()
        head = next((w for w in bank.queue if not w.answered), None)
        slack = head.deadline - now if head else max(w.track.deadline for w in bank.queue)
        decision = bank.governor.decide(slack, len(bank.queue), now)
        if head and (decision.level == MANDATORY or decision.probe):
            # What its time allows is there already; the model sees the sample later.
            self._publish(head, head.mandatory, now)
        if decision.level == MANDATORY:
            if head is None:  # nobody waits, and the model cannot keep up: let it miss this one
                bank.controller.skip()
                bank.queue.popleft()
            return
        before = clock()
        estimates = bank.controller.refine(decision.level, decision.batch)
        after = clock()
        bank.governor.observe(decision.level, len(estimates), after - before, after)
        for estimate in estimates:
            waiting = bank.queue.popleft()
            waiting.track.loss = estimate.loss
            self._publish(waiting, estimate, after)

    def _publish(self, waiting: Waiting, estimate: Estimate, now: float) -> None:
        """Settle an answer and hand it to the sinks, unless the sample has one."""
        if waiting.answered:
            return
        waiting.answered = True
        track, sample = waiting.track, waiting.sample
        track.bank.unanswered -= 1
        controller = track.bank.controller
        answer = controller.settle(estimate, sample.time, sample.values)
        track.pending.seen(estimate.index, sample.time)
        for match in track.pending.due():
            self._learn_label(track, match)
        track.level = estimate.level
        name = "mandatory" if estimate.level == MANDATORY else controller.levels[estimate.level].name
        result = Result(
            sample, answer, name, waiting.arrival, waiting.deadline, track.stream.channels
        )
        if answer.alarm:
            track.counters.alarms += 1
            track.alarms.append(result)
        waiting.sinks = len(self.sinks)
        for _, outbox, ready in self.sinks:
            outbox.append((waiting, result))
            ready.set()
            if len(outbox) > OUTBOX:
                self._shed(*outbox.popleft(), "sink_full")
        if not self.sinks:
            self._account(waiting, estimate.level, now)

    def _learn(self, bank: Bank, clock: Callable[[], float]) -> None:
        """Take a gradient step if one is due and a sample that came during it would not be late."""
        if bank.unanswered:
            return
        stream = bank.controller.learning_due()
        if stream is None:
            return
        track = next(t for t in self.tracks.values() if t.bank is bank and t.number == stream)
        level = max(track.level, 0)
        idle = min(t.deadline for t in self.tracks.values()) - bank.governor.predict(level, 1)[1]
        if not bank.governor.may_learn(idle, bank.learn_cost):
            return
        before = clock()
        landed = bank.controller.learn(stream)
        bank.learn_cost += 0.1 * (clock() - before - bank.learn_cost)
        if landed:
            track.counters.learn_steps += 1
        else:
            track.counters.learn_rejected += 1

    # --- out ------------------------------------------------------------------------------------

    async def _write(
        self, sink: Sink, outbox: deque[tuple[Waiting, Result]], ready: asyncio.Event
    ) -> None:
        """Hand results to one sink; while it is away, keep them and try again with full jitter."""
        clock, failures = asyncio.get_running_loop().time, 0
        while outbox or not self._closing:
            if not outbox:
                ready.clear()
                await ready.wait()
                continue
            batch = [outbox[k] for k in range(min(len(outbox), BATCH))]
            try:
                await sink.write([result for _, result in batch])
            except Unavailable as error:
                failures += 1
                if failures == 1:
                    LOG.warning("%s is away: %s", type(sink).__name__, error)
                await asyncio.sleep(self._rng.uniform(0, min(RETRY * 2 ** min(failures, 16), RETRY_CAP)))
                continue
            if failures:
                LOG.warning("%s is back", type(sink).__name__)
                failures = 0
            now = clock()
            for waiting, result in batch:
                # Results may have been shed at this end while the sink was slow.
                if outbox and outbox[0][0] is waiting:
                    outbox.popleft()
                    self._delivered(waiting, result, now)

    def _delivered(self, waiting: Waiting, result: Result, now: float) -> None:
        waiting.sinks -= 1
        if waiting.sinks == 0:
            self._account(waiting, result.answer.estimate.level, now)

    def _account(self, waiting: Waiting, level: int, now: float) -> None:
        """Count a sample out as answered."""
        track = waiting.track
        track.counters.answered(level, waiting.deadline - now)
        track.latency.add(max(now - waiting.arrival, 0.0))
        self._leave(waiting.origin)

    def _shed(self, waiting: Waiting, result: Result, reason: str) -> None:
        if waiting.sinks > 0:
            waiting.sinks = -1  # no other sink accounts for it
            waiting.track.counters.give_up(reason)
            self._leave(waiting.origin)

    def _finish(self) -> None:
        """Count what is left at the end: nothing is lost without a reason."""
        for bank in self.banks:
            for waiting in bank.queue:
                if not waiting.answered:
                    waiting.answered = True
                    waiting.track.counters.give_up("stopped")
        for _, outbox, _ in self.sinks:
            for waiting, result in outbox:
                self._shed(waiting, result, "stopped")

    def check(self) -> None:
        """Hold the counted identity against what is really on its way.

        Raises:
            AssertionError: A sample was lost or counted twice.
        """
        held: dict[str, int] = dict.fromkeys(self.tracks, 0)
        for bank in self.banks:
            for waiting in bank.queue:
                held[waiting.track.stream.name] += not waiting.answered
        on_its_way = {id(w): w for _, outbox, _ in self.sinks for w, _ in outbox if w.sinks > 0}
        for waiting in on_its_way.values():
            held[waiting.track.stream.name] += 1
        for name, track in self.tracks.items():
            track.counters.check(held[name])


def urgency(bank: Bank) -> float:
    """Earliest deadline of a bank; those who only have to catch up come last."""
    return next((w.deadline for w in bank.queue if not w.answered), inf)


def names(source: Source) -> str:
    """What a source delivers, for the log."""
    return ", ".join(stream.name for stream in source.streams)


def fault(track: Track | None, sample: Sample) -> tuple[str, str] | None:
    """What is wrong with a sample, as reason and detail; None if nothing is."""
    if track is None:
        return None
    wanted = len((track.raw or track.stream).channels)
    if sample.values.shape != (wanted,):
        return "channels", f"wanted {wanted} values, got {sample.values.shape}"
    if np.isinf(sample.values).any():
        return "not_finite", f"sample {sample.sequence}: an infinite value; null means missing"
    if not isfinite(sample.time):
        return "not_finite", f"sample {sample.sequence}: its time is {sample.time}"
    return None
