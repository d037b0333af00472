"""The async loop: ingest, decide, score, publish, learn.

Each source has a task that takes samples in and gives them their mandatory answer at once; one
task has them refined, publishes and learns; each sink has a task that writes. The model runs in a
process of its own, so nothing else waits for it: what is not refined shortly before its deadline
is published as it is, by a timer, and until it has been made every answer is mandatory. A sample
is counted when it comes in and when every sink has taken its answer, so that

    received = full + mandatory + shed + in flight

holds at any moment, and a source may acknowledge a sample exactly when it has been answered.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from math import inf, isfinite, isinf
from typing import Any

from adaptive.bank import Bank, Origin, Track, Waiting
from adaptive.controller import MANDATORY, Estimate
from adaptive.outlet import RETRY_CAP, Outlet, pause
from adaptive.sinks import Result, Sink
from sensors.sample import Feedback, Item, Rejected, Sample, Source, Unavailable

LOG = logging.getLogger(__name__)
TURN = 32  # samples of a source that are taken in at once
QUEUE = 4096  # samples of a bank that wait for the model; older ones are left out of its memory
BACKWARDS = 8  # samples in a row whose time may go back before the clock is believed
# Of the time to the deadline, left for publishing: at least, at most. Timers are a millisecond
# late, and later on a crowded machine; how late is measured and reckoned with.
SPARE, SPARE_LEAST, SPARE_MOST = 0.1, 2e-3, 0.6
# The model is waited for while at least so many of its estimates come in time, of the newest ones.
HOPE, HOPE_RATE = 0.5, 0.02
LAG, FORGET = 2.0, 0.99  # times the latest timer; how much of it is left with the next
FORGIVE = 0.999  # how much of it is left with each sample that sets no timer
REPORT_EVERY = 10.0  # [s] between two log lines about the same kind of reject


class Loop:
    """Runs until the sources end, or until it is cancelled."""

    def __init__(
        self,
        sources: Sequence[Source],
        tracks: dict[str, Track],
        banks: Sequence[Bank],
        sinks: Sequence[Sink] = (),
        rng: random.Random | None = None,
        prepare: Callable[[], Awaitable[None]] | None = None,
    ):
        """Put together what `adaptive.config` made.

        Args:
            sources: Where samples come from.
            tracks: By the name of the stream; every stream of every source is there.
            banks: Of which the models are ready and the governors know the costs after `prepare`.
            sinks: Where results go.
            rng: Draws the waits between attempts.
            prepare: Gets the banks ready; None if they are.
        """
        self.sources, self.tracks, self.banks = sources, tracks, banks
        self._rng = rng or random.Random()
        self.outlets = [Outlet(sink, self._rng) for sink in sinks]
        self.rejected: dict[str, int] = {}  # what belongs to no stream, by reason
        self._members = {(id(t.bank), t.number): t for t in tracks.values()}
        self._shortest = min((track.deadline for track in tracks.values()), default=inf)
        self._wake = asyncio.Event()
        self._reading = 0
        self.model = asyncio.Lock()  # held while a model is at work
        self.prepare, self.ready = prepare, asyncio.Event()
        self.preparing = ""  # what was done last
        self._since = -inf  # [s] when the models were ready
        if not prepare:
            self.ready.set()
        self._timer: asyncio.TimerHandle | None = None  # of the next sample whose time is up
        self._lag = 0.0  # [s] how late such timers have been
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
                preparing = group.create_task(self._get_ready())
                await self._score()
                preparing.cancel()
                for outlet in self.outlets:
                    outlet.end()
        finally:
            self._finish()
            for outlet in self.outlets:
                await outlet.close()

    async def _get_ready(self) -> None:
        """Have the models made; until then every answer is mandatory."""
        if self.prepare:
            async with self.model:
                await self.prepare()
            self._since = asyncio.get_running_loop().time()
            self.ready.set()
            self._wake.set()

    # --- in -------------------------------------------------------------------------------------

    async def _ingest(self, source: Source) -> None:
        """Take items from one source; while it is away, try again with full jitter."""
        clock, failures, away, taken = asyncio.get_running_loop().time, 0, False, 0
        if getattr(source, "waits", False):
            await self.ready.wait()
        while True:
            started = clock()
            try:
                async for item in source:
                    if away:
                        LOG.warning("%s: the source is back", names(source))
                        away = False
                    self._take(source, item, clock())
                    taken += 1
                    if taken % TURN == 0:  # of many that are there at once nobody else had a turn
                        await asyncio.sleep(0)
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
        queued = bank.controller.arrive(track.number, sample.values, sample.filled)
        deadline, due = now + track.deadline, now + self._patience(track.deadline)
        waiting = Waiting(track, sample, origin, now, deadline, due, queued)
        bank.add(waiting)
        if (
            not self.ready.is_set() or bank.hope < HOPE
        ):  # waiting would be in vain, and makes answers late
            self._publish_up_to(waiting, now)
            self._lag *= FORGIVE  # no timer is set that could show that things are better now
        elif not self._timer or due < self._timer.when():
            self._watch()
        if len(bank.queue) > QUEUE:
            self._publish_up_to(bank.leave_out(), now)

    # --- score ----------------------------------------------------------------------------------

    async def _score(self) -> None:
        """Answer what waits, earliest deadline first, until nothing more will come."""
        while True:
            banks = [bank for bank in self.banks if bank.queue and self.ready.is_set()]
            if banks:
                await self._step(min(banks, key=Bank.urgency))
                await asyncio.sleep(0)  # with the model in this process nobody else had a turn
            elif track := self._learning():
                await self._learn(track)
            elif self._reading:
                self._wake.clear()
                await self._wake.wait()
            else:
                return

    async def _step(self, bank: Bank) -> None:
        """Take the front of a bank's queue through the model."""
        clock = asyncio.get_running_loop().time
        before, head = clock(), bank.head()
        # A sample of another stream may come during the call and have to wait for its end.
        slack = min(head.due - before if head else inf, self._patience(self._shortest))
        decision = bank.governor.decide(slack, len(bank.queue), before)
        level, batch = decision.level, decision.batch
        if level < MANDATORY:  # a budget is short: some are left out, or all wait
            for _ in range(batch):
                self._publish_up_to(bank.leave_out(), before)
            return await asyncio.sleep(bank.governor.wait)
        if head and level == MANDATORY:
            # What its time allows is there already; the model sees the sample all the same.
            self._publish(head, None, before)
        if level == MANDATORY:
            level, batch = 0, len(bank.queue)
        call = bank.controller.take(level, batch)
        bank.taken = [bank.queue.popleft() for _ in call.samples]
        packed = await self._beside(bank, "run", call.level, call.block)
        after = clock()
        estimates = bank.controller.finish(call, packed)
        bank.governor.observe(level, len(estimates), after - before, after)
        for waiting, estimate in zip(bank.taken, estimates, strict=True):
            waiting.track.loss = estimate.loss
            if waiting.arrival >= self._since:  # nobody hoped for those before
                bank.hope += HOPE_RATE * ((after <= waiting.due) - bank.hope)
            self._publish(waiting, estimate, after)
        bank.taken = []

    async def _beside(self, bank: Bank, name: str, *args: Any) -> Any:
        """Have a bank's engine do something while everything else goes on."""
        async with self.model:
            return await bank.controller.engine.beside(name, *args)

    def _patience(self, deadline: float) -> float:
        """How long a sample may wait for the model, of the time to its deadline [s]."""
        spare = max(SPARE * deadline, SPARE_LEAST, LAG * self._lag)
        return deadline - min(spare, SPARE_MOST * deadline)

    def _watch(self) -> None:
        """Set the timer to the next sample whose time will be up."""
        due = min((head.due for bank in self.banks if (head := bank.head())), default=inf)
        if self._timer and (due < self._timer.when() or self._timer.cancelled()):
            self._timer.cancel()
            self._timer = None
        if self._timer is None and due < inf:
            self._timer = asyncio.get_running_loop().call_at(due, self._time_is_up)

    def _time_is_up(self) -> None:
        """Publish what there is for every sample that cannot wait longer."""
        now = asyncio.get_running_loop().time()
        if self._timer:
            self._lag = max(FORGET * self._lag, now - self._timer.when())
            self._timer = None
        for bank in self.banks:
            while (head := bank.head()) and head.due <= now:
                self._publish(head, None, now)
        self._watch()

    def _publish_up_to(self, last: Waiting, now: float) -> None:
        """Publish what there is for a sample and all before it: answers keep a stream's order."""
        while not last.answered and (head := last.track.bank.head()):
            self._publish(head, None, now)

    def _publish(self, waiting: Waiting, estimate: Estimate | None, now: float) -> None:
        """Settle an answer and hand it to the sinks, unless the sample has one.

        Args:
            waiting: The sample.
            estimate: The model's; None for the mandatory one.
            now: [s].
        """
        if waiting.answered:
            return
        waiting.answered = True
        track, sample = waiting.track, waiting.sample
        track.bank.unanswered -= 1
        controller = track.bank.controller
        estimate = estimate or controller.mandatory(waiting.queued)
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
        track.counters.dismissed += answer.dismissed
        waiting.sinks = len(self.outlets)
        for outlet in self.outlets:
            outlet.put(waiting, result)
        if not self.outlets:
            waiting.account(estimate.level, now)

    def _learning(self) -> Track | None:
        """The stream that a gradient step is due for, if there is time.

        There is, if a sample that comes during the step could still be refined in time.
        """
        for bank in self.banks if self.ready.is_set() else ():
            stream = bank.controller.learning_due()
            if stream is None:
                continue
            track = self._members[id(bank), stream]
            usual = bank.governor.predict(max(track.level, 0), 1)[1]
            idle = self._patience(self._shortest) - usual
            if bank.governor.may_learn(idle, bank.learn_cost):
                return track
        return None

    async def _learn(self, track: Track) -> None:
        clock = asyncio.get_running_loop().time
        bank, before = track.bank, clock()
        bank.controller.due[track.number] = 0
        landed = await self._beside(bank, "learn", track.number)
        bank.learn_cost += 0.1 * (clock() - before - bank.learn_cost)
        if landed:
            track.counters.learn_steps += 1
        else:
            track.counters.learn_rejected += 1

    # --- the account ----------------------------------------------------------------------------

    def _finish(self) -> None:
        """Count what is left at the end: nothing is lost without a reason."""
        for bank in self.banks:
            for waiting in (*bank.taken, *bank.queue):
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
        queued = {w for b in self.banks for w in (*b.taken, *b.queue) if not w.answered}
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
    if any(map(isinf, sample.values.tolist())):
        return "not_finite", f"sample {sample.sequence}: an infinite value; null means missing"
    if not isfinite(sample.time):
        return "not_finite", f"sample {sample.sequence}: its time is {sample.time}"
    return None
