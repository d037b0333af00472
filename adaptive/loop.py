"""The async loop: ingest, decide, score, publish, learn.

Each source has a task that takes samples in and gives them their mandatory answer at once; one
task refines, publishes and learns; each sink has a task that writes. A sample is counted when it
comes in and when every sink has taken its answer, so that

    received = full + mandatory + shed + in flight

holds at any moment, and a source may acknowledge a sample exactly when it has been answered.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from math import inf, isfinite

import numpy as np

from adaptive.bank import Bank, Origin, Track, Waiting
from adaptive.controller import MANDATORY, Estimate
from adaptive.outlet import RETRY_CAP, Outlet, pause
from adaptive.sinks import Result, Sink
from sensors.sample import Feedback, Item, Rejected, Sample, Source, Unavailable

LOG = logging.getLogger(__name__)
QUEUE = 4096  # samples of a bank that wait for the model; older ones are left out of its memory
BACKWARDS = 8  # samples in a row whose time may go back before the clock is believed
BACKLOG = 64  # answered samples that the model may be behind when even the cheapest level is late
CATCH_UP = (32, 8, 1)  # samples at once, when it catches up then
SHARE = 0.25  # of the shortest deadline that such a call may usually take
REPORT_EVERY = 10.0  # [s] between two log lines about the same kind of reject
# Turns of the event loop before a learning step blocks it: one for a sink's task to wake up, one
# for the tasks it makes, two to spare. Without them an answer leaves after the step.
TURNS = 4


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
        self._rng = rng or random.Random()
        self.outlets = [Outlet(sink, self._rng) for sink in sinks]
        self.rejected: dict[str, int] = {}  # what belongs to no stream, by reason
        self._members = {(id(t.bank), t.number): t for t in tracks.values()}
        self._shortest = min((track.deadline for track in tracks.values()), default=inf)
        self._wake = asyncio.Event()
        self._reading = 0
        self._last_report: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Run; on return all samples are answered, and all answers are with the sinks.

        Raises:
            ExceptionGroup: Something failed that is not an absence of the far side: a bug, or a
                configuration that the far side refuses.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for outlet in self.outlets:
                    group.create_task(outlet.run())
                self._reading = len(self.sources)
                for source in self.sources:
                    group.create_task(self._ingest(source))
                await self._score()
                for outlet in self.outlets:
                    outlet.end()
        finally:
            self._finish()
            for outlet in self.outlets:
                await outlet.close()

    # --- in -------------------------------------------------------------------------------------

    async def _ingest(self, source: Source) -> None:
        """Take items from one source; while it is away, try again with full jitter."""
        clock, failures, away = asyncio.get_running_loop().time, 0, False
        while True:
            started = clock()
            try:
                async for item in source:
                    if away:
                        LOG.warning("%s: the source is back", names(source))
                        away = False
                    self._take(source, item, clock())
                break
            except Unavailable as error:
                failures = 1 if clock() - started > RETRY_CAP else failures + 1
                if not away:
                    LOG.warning("%s: the source is away: %s", names(source), error)
                    away = True
                await asyncio.sleep(pause(failures, self._rng))
        self._reading -= 1
        self._wake.set()

    def _take(self, source: Source, item: Item, now: float) -> None:
        if isinstance(item, Sample):
            self._take_sample(source, item, now)
        elif isinstance(item, Feedback):
            if track := self.tracks.get(item.stream):
                track.feedback(item)
            else:
                self._reject(self._unknown(item.stream), now)
        else:
            self._reject(item, now)

    def _reject(self, item: Rejected, now: float) -> None:
        track = self.tracks.get(item.stream)
        if track:
            track.counters.reject(item.reason)
        else:
            self.rejected[item.reason] = self.rejected.get(item.reason, 0) + 1
        # Names that are not ours share one entry: anybody could send as many as they like.
        key = (item.stream if track else "", item.reason)
        if now - self._last_report.get(key, -inf) > REPORT_EVERY:
            self._last_report[key] = now
            LOG.warning("rejected (%s) %s: %s", item.reason, item.stream, item.detail)

    def _unknown(self, stream: str) -> Rejected:
        return Rejected(stream, "unknown_stream", f"have {', '.join(self.tracks)}")

    def _take_sample(self, source: Source, sample: Sample, now: float) -> None:
        track = self.tracks.get(sample.stream)
        if track is None:
            self._reject(self._unknown(sample.stream), now)
            source.answered(sample)
            return
        if problem := fault(track, sample):
            self._reject(Rejected(sample.stream, *problem), now)
            source.answered(sample)
            return
        # What came twice or from the past must not reach the transforms: they remember.
        if not track.counters.arrived(sample.sequence, sample.time):
            source.answered(sample)
            return
        if sample.time < track.newest:
            track.backwards += 1
            if track.backwards <= BACKWARDS:
                track.counters.give_up("time_backwards")
                source.answered(sample)
                return
            LOG.warning("%s: the sensor's clock went back, and stays there", sample.stream)
        track.newest, track.backwards = sample.time, 0
        track.state, made = track.chain.step(track.state, sample)
        track.counters.became(len(made))
        if not made:  # a transform has taken it in
            source.answered(sample)
        origin = Origin(source, sample, len(made))
        for one in made:
            self._queue(track, one, origin, now)
        self._wake.set()

    def _queue(self, track: Track, sample: Sample, origin: Origin, now: float) -> None:
        bank = track.bank
        track.rate.add(now)
        mandatory = bank.controller.arrive(track.number, sample.values, sample.filled)
        bank.add(Waiting(track, sample, origin, now, now + track.deadline, mandatory))
        if len(bank.queue) > QUEUE:
            skipped = bank.queue.popleft()
            bank.controller.skip()
            self._publish(skipped, skipped.mandatory, now)

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
            self._step(min(banks, key=Bank.urgency), clock)
            # Let samples in and results out before the next call, which nothing can interrupt.
            await asyncio.sleep(0)
            for bank in self.banks:
                if self._learning(bank) is None:
                    continue
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                track = self._learning(bank)
                if track is not None:
                    self._learn(track, clock)

    def _step(self, bank: Bank, clock: Callable[[], float]) -> None:
        """Answer or catch up on the head of a bank's queue."""
        now, head = clock(), bank.head()
        # Another stream's sample may come during the call: the shortest deadline bounds it, too.
        slack = min(head.deadline - now if head else inf, self._shortest)
        decision = bank.governor.decide(slack, len(bank.queue), now)
        if head and (decision.level == MANDATORY or decision.probe):
            # What its time allows is there already; the model sees the sample later.
            self._publish(head, head.mandatory, now)
        level, batch = decision.level, decision.batch
        if level == MANDATORY:
            if head is not None:
                return
            level, batch = 0, self._catch_up(bank)
            if batch == 0:
                bank.controller.skip()
                bank.queue.popleft()
                return
        before = clock()
        estimates = bank.controller.refine(level, batch)
        after = clock()
        bank.governor.observe(level, len(estimates), after - before, after)
        for estimate in estimates:
            waiting = bank.queue.popleft()
            waiting.track.loss = estimate.loss
            self._publish(waiting, estimate, after)

    def _catch_up(self, bank: Bank) -> int:
        """How many answered samples to take through the model while nobody waits.

        No answer depends on it, so a call may be one that is only usually short: one that is not
        delays the next mandatory answer. Without it, samples that a crowded machine leaves no time
        for were missing in the model's memory, and the governor saw nothing but its rare probes.
        With 0 the model misses the oldest one: it cannot keep up.
        """
        if len(bank.queue) > BACKLOG:
            return 0
        sizes = (batch for batch in CATCH_UP if batch <= len(bank.queue))
        limit = SHARE * self._shortest
        return next((n for n in sizes if bank.governor.predict(0, n)[0] <= limit), 0)

    def _publish(self, waiting: Waiting, estimate: Estimate, now: float) -> None:
        """Settle an answer and hand it to the sinks, unless the sample has one."""
        if waiting.answered:
            return
        waiting.answered = True
        track, sample = waiting.track, waiting.sample
        track.bank.unanswered -= 1
        controller = track.bank.controller
        answer = controller.settle(estimate, sample.time, sample.values)
        track.seen(estimate.index, sample.time)
        track.level = estimate.level
        name = "mandatory"
        if estimate.level != MANDATORY:
            name = controller.levels[estimate.level].name
        channels = track.stream.channels
        result = Result(sample, answer, name, waiting.arrival, waiting.deadline, channels)
        if answer.alarm:
            track.counters.alarms += 1
            track.alarms.append(result)
        waiting.sinks = len(self.outlets)
        for outlet in self.outlets:
            outlet.put(waiting, result)
        if not self.outlets:
            waiting.account(estimate.level, now)

    def _learning(self, bank: Bank) -> Track | None:
        """The stream that a gradient step is due for, if nobody waits and there is time.

        There is, if a sample that comes during the step could still be answered in time.
        """
        if any(one.queue for one in self.banks):
            return None
        stream = bank.controller.learning_due()
        if stream is None:
            return None
        track = self._members[id(bank), stream]
        idle = self._shortest - bank.governor.predict(max(track.level, 0), 1)[1]
        return track if bank.governor.may_learn(idle, bank.learn_cost) else None

    def _learn(self, track: Track, clock: Callable[[], float]) -> None:
        bank, before = track.bank, clock()
        landed = bank.controller.learn(track.number)
        bank.learn_cost += 0.1 * (clock() - before - bank.learn_cost)
        if landed:
            track.counters.learn_steps += 1
        else:
            track.counters.learn_rejected += 1

    # --- the account ----------------------------------------------------------------------------

    def _finish(self) -> None:
        """Count what is left at the end: nothing is lost without a reason."""
        for bank in self.banks:
            for waiting in bank.queue:
                if not waiting.answered:
                    waiting.answered = True
                    waiting.give_up("stopped")
        for outlet in self.outlets:
            outlet.give_up()

    def check(self) -> None:
        """Hold the counted identity against what is really on its way.

        Raises:
            AssertionError: A sample was lost or counted twice.
        """
        held: dict[str, int] = dict.fromkeys(self.tracks, 0)
        queued = {w for bank in self.banks for w in bank.queue if not w.answered}
        unsent = {w for outlet in self.outlets for w, _ in outlet.outbox if w.sinks > 0}
        for waiting in queued | unsent:
            held[waiting.track.stream.name] += 1
        for name, track in self.tracks.items():
            track.counters.check(held[name])


def names(source: Source) -> str:
    """What a source delivers, for the log."""
    return ", ".join(stream.name for stream in source.streams)


def fault(track: Track, sample: Sample) -> tuple[str, str] | None:
    """What is wrong with a sample, as reason and detail; None if nothing is."""
    wanted = len((track.raw or track.stream).channels)
    if sample.values.shape != (wanted,):
        return "channels", f"wanted {wanted} values, got {sample.values.shape}"
    if np.isinf(sample.values).any():
        return "not_finite", f"sample {sample.sequence}: an infinite value; null means missing"
    if not isfinite(sample.time):
        return "not_finite", f"sample {sample.sequence}: its time is {sample.time}"
    return None
